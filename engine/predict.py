"""Entry: images -> overlays, instance maps, a COCO json and a table of the objects, and sets for
annotation tools to correct.

Result files are named by a running number and the plain name of their image, and all of them lie in
one new folder, wherever the names of images or the lines of lists point to. In the json and the
table, an image is named by its path relative to what was given. A set for a tool is a folder of its
own with copies of the images.
"""

import argparse
import csv
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from data import rle
from data.batch import Annotation, collate
from data.errors import BadRecords, InputError
from data.images import SUFFIXES, num_pages, read_pages, read_rgb
from data.presets import WholeImage
from data.readers.source import lines_of
from data.records import Category
from data.writers import WRITERS, ids
from data.writers.content import unlike_stem
from data.writers.shapes import editable
from data.writers.target import Losses, new_file
from engine import backends, checkpoint, files, options, skipped
from engine.log import info, progress
from engine.report import draw
from engine.result import COLUMNS as OBJECT_COLUMNS
from engine.result import Result
from engine.values import device_for, some_of
from mobileinst import zoo
from mobileinst.deploy import fold_batchnorms
from mobileinst.set_prediction.postprocess import Postprocess

NAME_BYTES = 100  # of an image's name in those of its results; file systems allow 255 in all
PREDICTIONS = Path("predictions")
LONGEST_JPEG = 65_500  # pixels; the overlay of a longer image is a PNG
MARK = "objects.json"  # of a folder that --overwrite may replace; it is always written
DEFAULT = ("overlay", "ids", "coco", "csv")
SETS = tuple(name for name in WRITERS if name not in DEFAULT)
SPLIT = "train"  # of the images in a set, which will be learned from
COLUMNS = ("image", *OBJECT_COLUMNS)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Find objects in images.")
    parser.add_argument("images", type=Path, nargs="+", help="images, folders, or .txt lists")
    parser.add_argument("--recursive", action="store_true", help="also the folders in folders")
    parser.add_argument(
        "--pages",
        choices=("first", "all"),
        default="first",
        help="which pages of a TIFF or an animation",
    )
    parser.add_argument("--checkpoint", type=Path, help=options.CHECKPOINT)
    parser.add_argument(
        "--threshold",
        type=float,
        help="least score of an answer; the one with the best F1 on val if not given",
    )
    parser.add_argument(
        "--save", type=some_of((*DEFAULT, *SETS)), default=",".join(DEFAULT), metavar="NAME,...",
        help=f"what to write, of {', '.join((*DEFAULT, *SETS))}; all but the first "
        f"{len(DEFAULT)} are sets to correct in annotation tools",
    )  # fmt: skip
    options.add_image_size(parser)
    parser.add_argument(
        "--batch-size", type=options.positive, default=1,
        help="images in memory at a time; those of one padded size share a pass of the network",
    )  # fmt: skip
    options.add_duplicate_iou(parser)
    options.add_out(parser, f"folder; {PREDICTIONS}/NNN if not given")
    options.add_option(parser, "skip_bad_records")
    options.add_device(parser)
    return parser.parse_args(argv)


def images_of(given: list[Path], recursive: bool = False) -> tuple[dict[str, Path], Counter]:
    """Images by name, and how many files of each other kind were passed over.

    They are files, the images in folders in natural order, and the lines of lists; each once. Names
    are relative to the folder that was given, or to that of the file or list; if two were equal,
    to the folder that all images have in common.

    Raises:
        InputError: if there are none, a folder cannot be listed, or a list is not text.
    """
    found, passed_over = [], Counter()
    for path in given:
        folder = path if path.is_dir() else path.parent
        if path.is_dir():
            paths = images_in(path, recursive, passed_over)
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = lines_of(path, "list an image in each line")
            paths = [listed(folder, line) for line in lines]
        else:
            paths = [path]
        found += [(each, folder) for each in paths]
    if not found:
        raise InputError(
            f"{', '.join(map(str, given))}: no images ({', '.join(SUFFIXES)}) in there"
            f"{in_words(passed_over)}; name others"
        )
    once = list({os.path.abspath(path): (path, folder) for path, folder in found}.values())
    passed_over["repeated"] = len(found) - len(once)
    named = {name_of(*each): each[0] for each in once}
    if len(named) < len(once):
        base = os.path.commonpath([os.path.abspath(path.parent) for path, _ in once])
        named = {name_of(path, base): path for path, _ in once}
    return named, passed_over


def listed(folder: Path, line: str) -> Path:
    """The image of a line; backslashes are separators where that finds the file."""
    path, other = folder / line, folder / line.replace("\\", "/")
    return other if os.path.isfile(other) and not os.path.exists(path) else path


def name_of(path: Path, folder: Path | str) -> str:
    """The path relative to a folder; the plain name if it lies elsewhere."""
    relative = os.path.relpath(path, folder)
    return path.name if relative.split(os.sep)[0] == ".." else Path(relative).as_posix()


def images_in(folder: Path, recursive: bool, passed_over: Counter) -> list[Path]:
    """The images in a folder, before those in its folders; links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: (natural(entry.name), entry.name))
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}); name another folder"
        ) from None
    found, below = [], []
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):  # those of a Mac are called like the images they belong to
            passed_over["hidden files"] += 1
        elif os.path.isdir(path):
            if not recursive:
                passed_over["folders (without --recursive)"] += 1
            elif entry.is_symlink():
                passed_over["links to folders"] += 1
            else:
                below += images_in(path, recursive, passed_over)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            passed_over["files of other kinds"] += 1
    return found + below


def natural(name: str) -> list:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def in_words(passed_over: Counter) -> str:
    counts = [f"{what}: {count}" for what, count in passed_over.items() if count]
    return f" (passed over: {', '.join(counts)})" if counts else ""


def pages(
    path: Path, name: str, every: bool, passed_over: Counter
) -> Iterator[tuple[str, Image.Image]]:
    """The first or every page of a file, with its name in the results."""
    count = num_pages(path)
    if every and count > 1:
        for page, image in enumerate(read_pages(path), 1):
            yield f"{name}#page={page}", image
    else:
        yield name, read_rgb(path)
        passed_over["pages (without --pages all)"] += count - 1


@torch.inference_mode()
def find(
    images: list[Image.Image],
    model: nn.Module,
    postprocess: Postprocess,
    preset: WholeImage,
    device: torch.device,
    threshold: float,
) -> list[dict]:
    """RGB images -> results of the contract in data/batch.py, masks as RLE. Those of one padded
    size go through the network together.
    """
    by_size = defaultdict(list)
    for place, image in enumerate(images):
        by_size[preset.padded_size(image.height, image.width)].append(place)
    results = {}
    for places in by_size.values():
        samples = []
        for image in (images[place] for place in places):
            empty = Annotation(np.zeros(0, np.int64), [], None, 0, (image.height, image.width))
            samples.append(preset(image, empty))
        batch = collate(samples).to(device)
        outputs = model(batch.images, batch.padding)
        found = postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)
        results |= dict(zip(places, found, strict=True))
    return [results[place] for place in range(len(images))]


class Predictor:
    """Writes the results of images into a folder, and collects their objects.

    Args:
        categories: of the training data, in the order of the model's classes.
        save: names of the outputs.
    """

    def __init__(
        self,
        folder: Path,
        categories: list[dict],
        save: Sequence[str] = DEFAULT,
    ) -> None:
        self.folder, self.save = folder, save
        self.sets = [name for name in SETS if name in save]
        self.copies: list[str] = []  # names of the images in the sets
        self._stems: set[str] = set()
        self.classes = [
            Category(index, each["id"], each["name"]) for index, each in enumerate(categories)
        ]
        self.class_names = [each.name for each in self.classes]
        self.rows: list[tuple] = []  # of objects.csv
        self.coco: dict[str, list] = {"images": [], "categories": categories, "annotations": []}

    def add(self, number: int, name: str, path: Path, image: Image.Image, result: dict) -> None:
        """Writes what is saved of an image, the file `path` or a page of it.

        result: of the contract, masks as RLE at the size of the image.
        """
        found, size = Result(image, result, self.classes), (image.height, image.width)
        stem = Path(name).stem.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")
        target = f"{self.folder}/{number:05d}_{stem}"
        if "overlay" in self.save:
            suffix = "jpg" if max(image.size) <= LONGEST_JPEG else "png"
            found.overlay().save(f"{target}_overlay.{suffix}", quality=92)
        if "ids" in self.save:
            Image.fromarray(ids.index_map(found.rles, size)).save(f"{target}_instances.png")
        if self.sets:
            self.copy(name, image, path)
        self.coco["images"].append(
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        )
        annotations = self.coco["annotations"]
        annotations += found.to_coco(number, len(annotations) + 1)
        self.rows += [(name, *row.values()) for row in found.as_table()]

    def copy(self, name: str, image: Image.Image, path: Path) -> None:
        """Copies the image into every set; pages become images of their own."""
        name, _, page = name.partition("#page=")
        if page:
            name = f"{name.rpartition('.')[0]}_page{page}.png"
        # Names on a disk need not be UTF-8.
        name = unlike_stem(name.encode("utf-8", "replace").decode("utf-8"), self._stems)
        self.copies.append(name)
        for each in self.sets:
            target = new_file(self.folder / each / WRITERS[each].image_path(SPLIT, name))
            if page:
                image.save(target)
            else:
                shutil.copyfile(path, target)

    def write(self) -> list[str]:
        """Writes objects.csv, objects.json and the sets; returns what these cannot hold."""
        if "csv" in self.save:
            with open(self.folder / "objects.csv", "w", encoding="utf-8",
                      errors="backslashreplace", newline="") as file:  # fmt: skip
                csv.writer(file).writerows([COLUMNS, *self.rows])
        sentences = []
        for name in self.sets:
            writer, lost = WRITERS[name], Losses()
            images = [
                image | {"file_name": copy}
                for image, copy in zip(self.coco["images"], self.copies, strict=True)
            ]
            content = self.coco | {"images": images}
            if name == "labelme":  # it has no brush to correct masks with
                content["annotations"] = list(map(editable, self.coco["annotations"]))
            writer.write(self.folder / name, {SPLIT: content}, lost, iter)
            sentences += [f"{writer.TITLE} cannot hold {each}" for each in lost.sentences()]
        files.write_json(self.folder / MARK, self.coco)
        return sentences


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
    named, passed_over = images_of(opts.images, opts.recursive)
    loaded = backends.load(opts.checkpoint, builder, opts.image_size)
    _, content, model, _, postprocess, preset = loaded
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    postprocess.duplicate_iou = opts.duplicate_iou
    network = fold_batchnorms(model.to(device)), postprocess, preset, device
    categories = [{"id": each["id"], "name": each["name"]} for each in content["classes"]]
    bad, number = BadRecords(skip=True), 0

    def read() -> Iterator[tuple[int, str, Path, Image.Image]]:
        """Number, name, file and image of each that can be read."""
        nonlocal number
        for name, path in progress(named.items(), desc="predicting", leave=False):
            before = number
            try:
                for label, image in pages(path, name, opts.pages == "all", passed_over):
                    number += 1
                    yield number, label, path, image
            except InputError as error:
                later = f", page {number - before + 1} and later" if number > before else ""
                number += 1
                bad.note(error, path, f"image {number}{later}", number)

    out = opts.out or files.next_free(PREDICTIONS)
    with files.appearing(out, opts.overwrite, MARK) as folder:
        predictor, items = Predictor(folder, categories, opts.save), read()
        while several := list(islice(items, opts.batch_size)):
            found = find([image for *_, image in several], *network, threshold)
            for item, result in zip(several, found, strict=True):
                predictor.add(*item, result)
        images = predictor.coco["images"]
        if number == len(bad) == 1:
            raise InputError(next(iter(bad)).reason)
        if not images:
            skipped.report_skipped(bad)
            raise InputError(f"none of {number} images can be read, as listed above; name others")
        sentences = predictor.write()
        skipped.write(folder, bad)
    if text := draw.numbered(predictor.class_names):
        info(text)
    for sentence in sentences:
        info(sentence)
    place = out / skipped.NAME
    skipped.report_skipped(bad, place)
    info(
        f"{len(predictor.rows)} objects in {len(images)} of {number} images, scores above "
        f"{threshold:.3f} ({origin}): {out}{in_words(passed_over)}"
    )
    if not opts.skip_bad_records:
        skipped.require_none(bad, number, place)


if __name__ == "__main__":
    options.run_entry(main)
