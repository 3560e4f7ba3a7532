"""Entry: images -> overlays, instance maps, a COCO json and a table of the objects.

Results are named by a running number and the plain name of their image, and all of them lie in one
new folder, wherever the names of images or the lines of lists point to.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data import rle
from data.batch import Annotation, collate
from data.errors import BadRecords, InputError
from data.images import SUFFIXES, read_rgb
from data.presets import EvalPreset
from engine import checkpoint, files, options, skipped
from engine.files import newest_checkpoint
from engine.log import info, progress
from engine.report import draw
from engine.values import device_for
from mobileinst import zoo
from mobileinst.set_prediction.postprocess import Postprocess

NAME_BYTES = 100  # of an image's name in the names of its results; file systems allow 255 in all
COLUMNS = ("image", "object", "class", "score", "area", "x0", "y0", "x1", "y1", "cx", "cy")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Find objects in images.")
    parser.add_argument("images", type=Path, nargs="+", help="images, folders, or .txt lists")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of the newest run if not given")
    parser.add_argument(
        "--threshold", type=float, help="score; the one with the best F1 on val if not given"
    )
    options.add_image_size(parser)
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="a new folder")
    options.add_option(parser, "skip_bad_records")
    options.add_device(parser)
    return parser.parse_args(argv)


def images_of(paths: list[Path]) -> list[Path]:
    """Paths of images: files, the images in folders, the lines of lists.

    Raises:
        InputError: if there are none.
    """
    found = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.suffix == ".txt" and path.is_file():
            found += [path.parent / line for line in lines_of(path)]
        else:
            found.append(path)
    if not found:
        raise InputError(
            f"{', '.join(map(str, paths))}: no images ({', '.join(SUFFIXES)}) in there; name others"
        )
    return found


def lines_of(path: Path) -> list[str]:
    """The non-empty lines of a list; raises InputError if it is not text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a list of images ({error}); save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


@torch.inference_mode()
def find_objects(
    model: torch.nn.Module,
    postprocess: Postprocess,
    image: Image.Image,
    preset: EvalPreset,
    threshold: float | None,
    device: torch.device,
) -> dict:
    """The results of one image, masks as RLE at its size."""
    empty = Annotation(np.zeros(0, np.int64), [], None, 0, (image.height, image.width))
    batch = collate([preset(image, empty)]).to(device)
    outputs = model(batch.images, batch.padding)
    return postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)[0]


def instance_map(masks: list[dict], size: tuple[int, int]) -> Image.Image:
    """Instance ids 1, 2, ... in the order of the table, 0 elsewhere.

    Where masks overlap, the smaller one is on top (of equal ones, the first), so that no object is
    hidden by one around it. The json has the whole masks.
    """
    ids = np.zeros(size, np.uint16)
    for place in np.argsort(rle.area(masks), kind="stable")[::-1]:
        ids[rle.decode([masks[place]], size)[0]] = place + 1
    return Image.fromarray(ids)


@dataclass
class Tables:
    """Objects of all images so far: rows of the csv, records of the json."""

    categories: list[dict]
    rows: list[tuple] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)

    def add(self, number: int, name: str, size: tuple[int, int], result: dict) -> None:
        """Adds the results of one image; categories get the ids of the training data."""
        self.images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        columns = (result[key].tolist() for key in ("labels", "scores", "boxes"))
        for place, (mask, label, score, box) in enumerate(zip(result["masks"], *columns), 1):
            ys, xs = np.nonzero(rle.decode([mask], size)[0])
            centre = round(float(xs.mean()), 1), round(float(ys.mean()), 1)
            category = self.categories[label]
            shown = (category["name"], round(score, 4), len(xs), *map(int, box), *centre)
            self.rows.append((name, place, *shown))
            x0, y0, x1, y1 = box
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": category["id"],
                    "segmentation": rle.to_json(mask),
                    "area": len(xs),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "score": round(score, 5),
                }
            )

    def write(self, out: Path) -> None:
        # Names on a disk need not be UTF-8.
        with open(out / "objects.csv", "w", encoding="utf-8", errors="backslashreplace",
                  newline="") as file:  # fmt: skip
            csv.writer(file).writerows([COLUMNS, *self.rows])
        content = {"images": self.images, "categories": self.categories}
        files.write_json(out / "objects.json", content | {"annotations": self.annotations})


def short_name(path: Path) -> str:
    """The name of an image without its suffix, cut so that more can be added to it."""
    return path.stem.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")


def write_image(
    path: Path, number: int, out: Path, tables: Tables, find: Callable[[Image.Image], dict]
) -> None:
    """Writes the overlay and the instance map of one image and adds its objects to the tables."""
    class_names = [category["name"] for category in tables.categories]
    image = read_rgb(path)
    size = (image.height, image.width)
    result = find(image)
    labels, scores = result["labels"].tolist(), result["scores"].tolist()
    name = f"{number:05d}_{short_name(path)}"
    overlay = draw.overlay(image, labels, scores, result["masks"], class_names)
    overlay.save(out / f"{name}_overlay.jpg", quality=92)
    instance_map(result["masks"], size).save(out / f"{name}_instances.png")
    tables.add(number, path.name, size, result)


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """Goes on after images that cannot be read, and lists them at the end.

    Args:
        builder: rebuilds the model; to be given if it was trained with parts not in the zoo.
    Raises:
        InputError: at the end, if an image could not be read and was not to be left out.
    """
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    paths = images_of(opts.images)
    content = checkpoint.load(opts.checkpoint or newest_checkpoint(options.RUNS))
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    preset = EvalPreset(opts.image_size or content["options"]["image_size"])
    model, _, postprocess = checkpoint.build(content, builder)
    model.to(device)
    tables = Tables([{"id": c["id"], "name": c["name"]} for c in content["classes"]])
    bad = BadRecords(skip=True)

    def find(image: Image.Image) -> dict:
        return find_objects(model, postprocess, image, preset, threshold, device)

    with files.appearing(opts.out) as folder:
        for number, path in enumerate(progress(paths, desc="predicting", leave=False), 1):
            try:
                write_image(path, number, folder, tables, find)
            except InputError as error:
                bad.note(error, path, f"image {number}")
        if not tables.images:
            raise InputError(next(iter(bad)).reason)
        tables.write(folder)
        if len(bad):
            files.write_json(folder / skipped.NAME, skipped.records_of(bad))
    info(
        f"{len(tables.rows)} objects in {len(tables.images)} of {len(paths)} images, scores above "
        f"{threshold:.3f} ({origin}): {opts.out}"
    )
    skipped.report_skipped([bad], opts.out / skipped.NAME)
    if len(bad) and not opts.skip_bad_records:
        raise InputError(
            f"{len(bad)} of {len(paths)} images cannot be read, as {opts.out / skipped.NAME} lists;"
            " replace them, or leave them out with --skip-bad-records"
        )


if __name__ == "__main__":
    options.run_entry(main)
