"""One PNG for each object: <split>/x/images/x.jpg and <split>/x/masks/object_0001.png, ..., as
the Data Science Bowl 2018 has them. x is a name without suffix, with _ for the / of folders.

Overlaps, holes and parts are kept. objects.csv names the class and the annotation of each mask.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from data import rle
from data.writers import target
from data.writers.target import Losses, Splits, Wrap

NAME, TITLE, BY_STEM = "masks", "one PNG per object", True


def image_path(split: str, name: str) -> str:
    return f"{split}/{flat(name)}/images/{Path(name).name}"


def flat(name: str) -> str:
    return target.stem_of(name).replace("/", "_")


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    target.note_equal_names(splits, lost)
    rows = {split: [] for split in splits}
    for split, content in splits.items():
        for image, objects in target.images_of(content, wrap):
            place = folder / split / flat(image["file_name"]) / "masks"
            place.mkdir(parents=True)
            for number, one in enumerate(target.drop_unsupported(image, objects, lost), start=1):
                inside, corner = rle.decode_inside(one.mask())
                mask = Image.new("1", (image["width"], image["height"]))
                mask.paste(Image.fromarray(inside), corner)
                name = f"object_{number:04d}.png"
                mask.save(place / name, compress_level=1)
                rows[split].append((one, (place / name).relative_to(folder / split).as_posix(), 1))
    target.write_tables(folder, splits, rows)
