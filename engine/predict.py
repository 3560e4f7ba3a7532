"""Entry: images -> overlays, instance maps, a COCO json and a table of the objects.

Results are named by a running number and the plain name of their image, and all of them lie in one
new folder, wherever the names of images or the lines of lists point to.
"""

import argparse
import csv
from collections.abc import Callable
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

NAME_BYTES = 100  # of an image's name in those of its results; file systems allow 255 in all
PREDICTIONS = Path("predictions")
MARK = "objects.json"  # of a folder that --overwrite may replace
COLUMNS = ("image", "object", "class", "score", "area", "x0", "y0", "x1", "y1", "cx", "cy")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Find objects in images.")
    parser.add_argument("images", type=Path, nargs="+", help="images, folders, or .txt lists")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of the newest run if not given")
    parser.add_argument(
        "--threshold", type=float, help="score; the one with the best F1 on val if not given"
    )
    options.add_image_size(parser)
    options.add_out(parser, f"folder; {PREDICTIONS}/NNN if not given")
    options.add_option(parser, "skip_bad_records")
    options.add_device(parser)
    return parser.parse_args(argv)


def images_of(paths: list[Path]) -> list[Path]:
    """Paths of images: files, the images in folders, the lines of lists.

    Raises:
        InputError: if there are none, or a list is not text.
    """
    found = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.suffix == ".txt" and path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{path}: not a list of images ({error}); save it as UTF-8"
                ) from None
            found += [path.parent / line.strip() for line in lines if line.strip()]
        else:
            found.append(path)
    if not found:
        raise InputError(
            f"{', '.join(map(str, paths))}: no images ({', '.join(SUFFIXES)}) in there; name others"
        )
    return found


def instance_map(masks: list[dict], size: tuple[int, int]) -> Image.Image:
    """Instance ids 1, 2, ... in the order of the table, 0 elsewhere.

    Where masks overlap, the smaller one is on top (of equal ones, the first), so that no object is
    hidden by one around it. The json has the whole masks.
    """
    ids = np.zeros(size, np.uint16)
    for place in np.argsort(rle.area(masks), kind="stable")[::-1]:
        ids[rle.decode([masks[place]], size)[0]] = place + 1
    return Image.fromarray(ids)


class Predictor:
    """Writes the results of images into a folder, and collects their objects.

    Args:
        categories: of the training data, in the order of the model's classes.
        find: image -> results of the contract, masks as RLE at its size.
    """

    def __init__(
        self, folder: Path, categories: list[dict], find: Callable[[Image.Image], dict]
    ) -> None:
        self.folder, self.find = folder, find
        self.class_names = [category["name"] for category in categories]
        self.rows: list[tuple] = []  # of objects.csv
        self.coco: dict[str, list] = {"images": [], "categories": categories, "annotations": []}

    def add(self, number: int, path: Path) -> None:
        """Predicts one image and writes its overlay and instance map."""
        image = read_rgb(path)
        result = self.find(image)
        labels, scores, boxes = (result[key].tolist() for key in ("labels", "scores", "boxes"))
        masks, size = result["masks"], (image.height, image.width)
        stem = path.stem.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")
        target = f"{self.folder}/{number:05d}_{stem}"
        overlay = draw.overlay(image, draw.Objects(labels, masks, scores), self.class_names)
        overlay.save(f"{target}_overlay.jpg", quality=92)
        instance_map(masks, size).save(f"{target}_instances.png")
        self.coco["images"].append(
            {"id": number, "file_name": path.name, "height": size[0], "width": size[1]}
        )
        ids = [self.coco["categories"][label]["id"] for label in labels]
        records = rle.records(masks, ids, number, len(self.coco["annotations"]) + 1)
        for record, score in zip(records, scores, strict=True):
            self.coco["annotations"].append(record | {"score": round(score, 5)})
        objects = zip(masks, labels, scores, boxes, strict=True)
        for place, (mask, label, score, box) in enumerate(objects, 1):
            ys, xs = np.nonzero(rle.decode([mask], size)[0])
            centre = round(float(xs.mean()), 1), round(float(ys.mean()), 1)
            shown = self.class_names[label], round(score, 4), len(xs), *map(int, box), *centre
            self.rows.append((path.name, place, *shown))

    def write(self) -> None:
        """Writes objects.csv and objects.json."""
        # Names on a disk need not be UTF-8.
        with open(self.folder / "objects.csv", "w", encoding="utf-8", errors="backslashreplace",
                  newline="") as file:  # fmt: skip
            csv.writer(file).writerows([COLUMNS, *self.rows])
        files.write_json(self.folder / MARK, self.coco)


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """Goes on after images that cannot be read, and lists them at the end.

    Args:
        builder: rebuilds the model; to be given if it was trained with parts not in the zoo.
    Raises:
        InputError: at the end, if an image could not be read and was not to be left out.
    """
    opts = parse(argv)
    files.require_free(opts.out, opts.overwrite, MARK)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    paths = images_of(opts.images)
    content = checkpoint.load(opts.checkpoint or newest_checkpoint(options.RUNS))
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    preset = EvalPreset(opts.image_size or content["options"]["image_size"])
    model, _, postprocess = checkpoint.build(content, builder)
    model.to(device)

    @torch.inference_mode()
    def find(image: Image.Image) -> dict:
        empty = Annotation(np.zeros(0, np.int64), [], None, 0, (image.height, image.width))
        batch = collate([preset(image, empty)]).to(device)
        outputs = model(batch.images, batch.padding)
        return postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)[0]

    categories = [{"id": each["id"], "name": each["name"]} for each in content["classes"]]
    bad = BadRecords(skip=True)
    out = opts.out or files.next_free(PREDICTIONS)
    with files.appearing(out, opts.overwrite, MARK) as folder:
        predictor = Predictor(folder, categories, find)
        for number, path in enumerate(progress(paths, desc="predicting", leave=False), 1):
            try:
                predictor.add(number, path)
            except InputError as error:
                bad.note(error, path, f"image {number}")
        images = predictor.coco["images"]
        if not images:
            raise InputError(next(iter(bad)).reason)
        predictor.write()
        skipped.write(folder, bad)
    info(
        f"{len(predictor.rows)} objects in {len(images)} of {len(paths)} images, scores above "
        f"{threshold:.3f} ({origin}): {out}"
    )
    listed = out / skipped.NAME
    skipped.report_skipped(bad, listed)
    if len(bad) and not opts.skip_bad_records:
        raise InputError(
            f"{len(bad)} of {len(paths)} images cannot be read, as {listed} lists; "
            "replace them, or leave them out with --skip-bad-records"
        )


if __name__ == "__main__":
    options.run_entry(main)
