"""Entry: converts a data set to another annotation format, in a new folder."""

import argparse
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path

from data import readers
from data.errors import BadRecords, InputError, counted
from data.images import upright_size
from data.readers.cache import convert
from data.readers.image_files import locate
from data.readers.source import Source, split_of
from data.writers import WRITERS, content
from data.writers.target import Content, Losses, with_parent
from engine import files, options, skipped
from engine.commands import command, show_next
from engine.log import info, progress

LOSSES = "losses.csv"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Convert a data set into another annotation format.")
    parser.add_argument("data", type=Path, help="folder or file of the data set; it is only read")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument(
        "--to", required=True, choices=WRITERS, metavar="FORMAT",
        help=f"format to write, one of {', '.join(WRITERS)}",
    )  # fmt: skip
    options.add_option(parser, "format", help="read the data set as this format, where several fit")
    parser.add_argument("--no-images", action="store_true", help="write the annotations alone")
    parser.add_argument(
        "--strict", action="store_true", help="end at the first thing that --to cannot hold"
    )
    for name in options.READING:
        options.add_option(parser, name)
    return parser.parse_args(argv)


def read(opts: argparse.Namespace, bad: BadRecords) -> tuple[str, dict[str, tuple]]:
    """The title of the format, and split -> its source and checked content."""
    sources = readers.recognise(opts.data, opts.format)
    title = next(iter(sources.values())).reader.TITLE
    sources = convert(sources, list(sources), options.CONVERTED, opts.skip_bad_records, report=info)
    if "all" in sources and "train" not in sources:
        sources["train"] = sources.pop("all")
    contents, splits_of = {}, defaultdict(list)
    for split, source in sources.items():
        notes: list[str] = []
        contents[split] = content.load(
            source.path,
            bad,
            notes,
            opts.keep_crowds,
            opts.boxes_as_masks,
            source.images,
            opts.crowd_as_instances,
        )
        for note in notes:
            splits_of[note].append(split)
    for note, splits in splits_of.items():
        info(f"{', '.join(splits)}: {note}")
    content.join_classes(contents)
    return title, {split: (sources[split], contents[split]) for split in sources}


def find_images(split: Content, source: Source, bad: BadRecords) -> dict[int, Path]:
    """The image files by id. Images without a file of their size are removed from the split.

    Raises:
        InputError: if there are no files.
    """
    names = [image["file_name"] for image in split["images"]]
    folder, spelled = locate(source.images, names)
    if not spelled:
        raise InputError(
            f"{source.path}: none of its {len(names)} images is in "
            f"{', '.join(map(str, source.images))}: add them, or give --no-images to convert the "
            "annotations alone"
        )
    found: dict[int, Path] = {}
    for image in progress(split["images"], desc="looking at images", leave=False):
        image["file_name"] = spelled.get(image["file_name"], image["file_name"])
        path = folder / image["file_name"]
        try:
            size = upright_size(path)
            if size != (image["height"], image["width"]):
                raise InputError(
                    f"{path} is {size[1]} x {size[0]} (width x height, EXIF rotation applied) but "
                    f"its annotations have {image['width']} x {image['height']}: correct them"
                )
            found[image["id"]] = path
        except InputError as error:
            bad.note(error, path, f"image {image['id']}", image["id"])
    for key, id_ in (("images", "id"), ("annotations", "image_id")):
        split[key] = [one for one in split[key] if one[id_] in found]
    return found


def main(argv: list[str]) -> None:
    """Raises InputError if the input cannot be read; nothing is written then."""
    opts = parse(argv)
    if opts.data.resolve() in (opts.out.resolve(), *opts.out.resolve().parents):
        raise InputError(f"{opts.out} is in the data set {opts.data}: choose a folder elsewhere")
    if not files.is_free(opts.out):
        raise InputError(f"{opts.out}: the output exists; name a new folder")
    writer, bad, lost = WRITERS[opts.to], BadRecords(opts.skip_bad_records), Losses(opts.strict)
    title, found = read(opts, bad)
    contents = {split: split_content for split, (_, split_content) in found.items()}
    with files.atomic_folder(opts.out) as folder:
        for split, (source, split_content) in found.items():
            images = {} if opts.no_images else find_images(split_content, source, bad)
            tidy(split, split_content, writer.BY_STEM, lost)
            copied = split_content["images"] if images else ()
            for image in progress(copied, desc=f"copying {split} images", leave=False):
                path = folder / writer.image_path(split, image["file_name"])
                shutil.copyfile(images[image["id"]], with_parent(path))
        writer.write(
            folder, contents, lost,
            lambda images: progress(images, desc=f"writing {writer.TITLE}", leave=False),
        )  # fmt: skip
        if len(lost):
            rows = [("what", "where"), *lost]
            files.write_csv(folder / LOSSES, rows, "name another folder")
        skipped.write(folder, bad)
    skipped.report_skipped(bad, opts.out / skipped.NAME)
    for sentence in lost.sentences():
        info(f"{writer.TITLE} cannot hold {sentence}")
    if len(lost):
        info(f"each of them is listed in {opts.out / LOSSES}")
    info(f"{title} -> {writer.TITLE}: {summary(contents)}: {opts.out}")
    if not opts.no_images:
        show_next({"what is in it": command("check_data", opts.out)})


def tidy(split: str, split_content: Content, by_stem: bool, lost: Losses) -> None:
    """Renames images as they are written: without folders that the target adds, those named after
    the split, and the one of x/images/y.png.
    """
    images = split_content["images"]
    names = [os.path.normpath(image["file_name"].replace("\\", "/")) for image in images]
    first = {name.partition("/")[0] for name in names}
    while len(first) == 1 and split_of(min(first)) in (split, "images") and min(first) not in names:
        names = [name.partition("/")[2] for name in names]
        first = {name.partition("/")[0] for name in names}
    own = [re.fullmatch(r"([^/]+)/images/[^/]+(\.[^/.]+)", name) for name in names]
    if all(own):
        names = ["".join(match.groups()) for match in own]
    stems: set[str] = set()
    for image, name in zip(images, names):
        image["file_name"] = content.unique_stem(name, stems) if by_stem else name
        if image["file_name"] != name:
            where = f"{name} becomes {image['file_name']}"
            lost.note("names of images that are equal without suffix", where)


def summary(contents: dict[str, Content]) -> str:
    images = {split: len(each["images"]) for split, each in contents.items()}
    objects = sum(len(each["annotations"]) for each in contents.values())
    classes = len(next(iter(contents.values()))["categories"])
    splits = ", ".join(f"{split} {number}" for split, number in images.items())
    counts = zip((sum(images.values()), objects, classes), ("image", "object", "class"))
    every, *rest = [counted(number, noun) for number, noun in counts]
    return ", ".join([f"{every} ({splits})", *rest])


if __name__ == "__main__":
    options.run_entry(main)
