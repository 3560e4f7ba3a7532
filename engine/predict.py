"""Entry: pictures → overlays, instance-id PNGs, a COCO json and a table of what was found.

Files are named by a running number and the plain name of their picture, and all of them are
written into one new folder: no name of a picture, in a folder or a list, leads anywhere else. A
list is read as if its lines stood in the command, so it may name pictures anywhere.
"""

import argparse
import csv
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import rle
from data.batch import Annotation, collate
from data.errors import BadRecords, InputError
from data.images import read_rgb
from data.presets import EvalPreset
from engine import checkpoint, files, options, skipped
from engine.log import info
from engine.report import draw
from engine.run import newest_checkpoint

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
NAME_BYTES = 100  # of a picture's name in those of its results: file systems allow 255 in all
COLUMNS = ("picture", "object", "class", "score", "area", "x0", "y0", "x1", "y1", "cx", "cy")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.parser("Find objects in pictures.")
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, folders, or .txt lists")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of the newest run if not given")
    parser.add_argument(
        "--threshold", type=float, help="score; the one with the best F1 on val if not given"
    )
    options.add_image_size(parser)
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="a new folder")
    options.add_skip_bad(parser)
    options.add_device(parser)
    options.add_debug(parser)
    return parser.parse_args(argv)


def pictures_of(paths: list[Path], bad: BadRecords) -> list[Path]:
    """All pictures that paths name: files, the pictures in folders, the lines of lists.

    Raises:
        InputError: a path does not exist and is not to be left out, or there is no picture at all.
    """
    found = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.suffix == ".txt" and path.is_file():
            found += [path.parent / line for line in lines_of(path)]
        else:
            found.append(path)
    there = [path for path in found if os.path.isfile(path)]
    for path in found if len(there) < len(found) else ():
        if not os.path.isfile(path):
            error = f"{path}: no such picture; correct the name, or the list it is in"
            bad.take(InputError(error), path, "picture")
    if not there:
        raise InputError(
            f"{', '.join(map(str, paths))}: no pictures ({', '.join(SUFFIXES)}) in there; "
            "name others"
        )
    return there


def lines_of(path: Path) -> list[str]:
    """The lines of a list that are not empty; InputError if it is no text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no list of pictures ({error}); save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


@torch.inference_mode()
def find_objects(
    model: torch.nn.Module,
    postprocess,
    picture: Image.Image,
    preset: EvalPreset,
    threshold: float | None,
    device: torch.device,
) -> dict:
    """The results of one picture, masks as RLE at its own size."""
    size = (picture.height, picture.width)
    nothing = Annotation(np.zeros(0, np.int64), [], None, 0, size)
    batch = collate([preset(picture, nothing)]).to(device)
    outputs = model(batch.images, batch.padding)
    return postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)[0]


def instance_map(masks: list[dict], size: tuple[int, int]) -> Image.Image:
    """Instance ids 1.. in the order of the table, 0 elsewhere; a pixel has one id only.

    Where masks overlap, the smaller one is on top (of equal ones, the first), so that an object is
    not erased by the one it lies in, whatever the scores. The json has the whole masks.
    """
    ids = np.zeros(size, np.uint16)
    for place in np.argsort(rle.area(masks), kind="stable")[::-1]:
        ids[rle.decode([masks[place]], size)[0]] = place + 1
    return Image.fromarray(ids)


def table_rows(name: str, result: dict, class_names: list[str], size: tuple[int, int]) -> list:
    """One row per object: class, score, area in pixels, box and centroid in pixels."""
    rows = []
    for number, mask in enumerate(result["masks"], 1):
        ys, xs = np.nonzero(rle.decode([mask], size)[0])
        values = (
            class_names[int(result["labels"][number - 1])],
            round(float(result["scores"][number - 1]), 4),
            len(xs),
            *map(int, result["boxes"][number - 1].tolist()),
            round(float(xs.mean()), 1),
            round(float(ys.mean()), 1),
        )
        rows.append((name, number, *values))
    return rows


def coco_records(image_id: int, result: dict, categories: list[dict], first_id: int) -> list[dict]:
    """Objects as COCO annotations with the original category ids."""
    areas = rle.area(result["masks"])
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": categories[int(label)]["id"],
            "segmentation": rle.to_json(mask),
            "area": int(areas[i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": round(float(score), 5),
        }
        for i, (label, mask, score, (x0, y0, x1, y1)) in enumerate(
            zip(result["labels"], result["masks"], result["scores"], result["boxes"].tolist())
        )
    ]


@dataclass
class Tables:
    """What is known of all pictures so far: rows of the csv, records of the json."""

    categories: list[dict]
    rows: list[tuple] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)

    def write(self, out: Path) -> None:
        # Names on a disk need not be UTF-8.
        with open(out / "objects.csv", "w", encoding="utf-8", errors="backslashreplace",
                  newline="") as file:  # fmt: skip
            csv.writer(file).writerows([COLUMNS, *self.rows])
        content = {"images": self.images, "categories": self.categories}
        files.write_json(out / "objects.json", content | {"annotations": self.annotations})


def short_name(path: Path) -> str:
    """The plain name of a picture without its ending, cut so that more can be added to it."""
    return path.stem.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")


def write_picture(
    path: Path, number: int, out: Path, tables: Tables, find: Callable[[Image.Image], dict]
) -> None:
    """Everything about one picture into the folder `out` and the tables."""
    class_names = [category["name"] for category in tables.categories]
    picture = read_rgb(path)
    size = (picture.height, picture.width)
    result = find(picture)
    name = f"{number:05d}_{short_name(path)}"
    overlay = draw.overlay(
        picture, result["labels"].tolist(), result["scores"].tolist(), result["masks"],
        class_names,
    )  # fmt: skip
    overlay.save(out / f"{name}_overlay.jpg", quality=92)
    instance_map(result["masks"], size).save(out / f"{name}_instances.png")
    tables.rows += table_rows(path.name, result, class_names, size)
    tables.images.append(
        {"id": number, "file_name": path.name, "height": size[0], "width": size[1]}
    )
    tables.annotations += coco_records(
        number, result, tables.categories, len(tables.annotations) + 1
    )


def write_all(
    paths: list[Path],
    out: Path,
    tables: Tables,
    find: Callable[[Image.Image], dict],
    bad: BadRecords,
) -> InputError | None:
    """Everything about every picture; the error of a broken one that ended it before all are done.

    What was done until then is whole. Raises that error if it was the first picture.
    """
    stopped = None
    try:
        for number, path in enumerate(
            tqdm(paths, "predicting", leave=False, dynamic_ncols=True), 1
        ):
            try:
                write_picture(path, number, out, tables, find)
            except InputError as error:
                bad.take(error, path, f"picture {number}")
    except InputError as error:
        stopped = error
    if not tables.images:
        raise stopped or InputError(f"none of the {len(paths)} pictures can be read; name others")
    tables.write(out)
    if len(bad):
        files.write_json(out / skipped.NAME, skipped.records_of(bad))
    return stopped


def main(argv: list[str], builder: checkpoint.Builder = options.build_model) -> None:
    """`builder` rebuilds the model: the one it was trained with, if that was not the zoo's."""
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    device = options.device_for(opts.device)
    bad = BadRecords(opts.skip_bad_records)
    paths = pictures_of(opts.pictures, bad)
    content = checkpoint.load(opts.checkpoint or newest_checkpoint(options.RUNS))
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    preset = EvalPreset(opts.image_size or content["options"]["image_size"])
    categories = [{"id": c["id"], "name": c["name"]} for c in content["classes"]]
    model, _, postprocess = checkpoint.build(content, builder)
    model.to(device)
    with files.appearing(opts.out) as unfinished:
        tables = Tables(categories)
        stopped = write_all(
            paths,
            unfinished,
            tables,
            lambda picture: find_objects(model, postprocess, picture, preset, threshold, device),
            bad,
        )
    done = f"{len(tables.images)} of {len(paths)} pictures"
    if stopped:
        raise InputError(f"{stopped}; {done} are done, before it, and kept in {opts.out}")
    info(
        f"{len(tables.rows)} objects in {done}, scores above {threshold:.3f} ({origin}): {opts.out}"
    )
    skipped.report_skipped([bad], opts.out / skipped.NAME)


if __name__ == "__main__":
    options.run_entry(main)
