"""Entry: images -> overlays, instance maps, a COCO json and a table of the objects, and sets for
annotation tools to correct.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from data.errors import BadRecords, InputError
from engine import backends, checkpoint, files, inputs, options, output, shards, skipped, tiles
from engine.commands import arguments, command, show_next
from engine.log import info, progress
from engine.report import draw
from engine.values import device_for, fraction, some_of
from mobileinst import zoo
from mobileinst.deploy import fold_batchnorms

PREDICTIONS = Path("predictions")

# The options that decide what is found.
FINDING = (
    *("recursive", "pages", "threshold", "image_size", "tiles"),
    *("duplicate_iou", "skip_bad_records"),
)

Found = tuple[int, str, Path, Image.Image, dict]  # number, name, file, image, result


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Find objects in images.")
    parser.add_argument("images", type=Path, nargs="*", help="images, folders, or .txt lists")
    parser.add_argument("--recursive", action="store_true", help="also the folders in folders")
    pages = "which pages of a TIFF or an animation"
    parser.add_argument("--pages", choices=("first", "all"), default="first", help=pages)
    parser.add_argument("--checkpoint", type=Path, help=options.CHECKPOINT)
    least = "least score of a detection; the one with the best F1 on val if not given"
    parser.add_argument("--threshold", type=fraction, help=least)
    options.add_tiles(parser)
    parser.add_argument(
        "--save", type=some_of(output.NAMES), default=",".join(output.DEFAULT),
        metavar="NAME,...",
        help=f"what to write, of {', '.join(output.NAMES)}; cutouts are a transparent PNG of each "
        f"object, the last {len(output.SETS)} are sets to correct in annotation tools",
    )  # fmt: skip
    options.add_colour_by(parser)
    options.add_image_size(parser)
    parser.add_argument(
        "--batch-size", type=options.positive, default=1,
        help="images in memory at a time; those of one padded size share a pass of the network",
    )  # fmt: skip
    options.add_duplicate_iou(parser)
    options.add_out(parser, f"folder; {PREDICTIONS}/NNN if not given")
    options.add_option(parser, "skip_bad_records")
    several = parser.add_argument_group("an array of jobs")
    several.add_argument(
        "--shard", type=shards.shard, metavar="I/N",
        help="do part I of N of the images, I from 1, into the --out that all parts share; started "
        "again it goes on after the last image, and with another checkpoint or other options it is "
        "refused",
    )  # fmt: skip
    several.add_argument(
        "--merge", action="store_true",
        help="join what all parts wrote into --out to one json and table; needs no images",
    )  # fmt: skip
    options.add_device(parser)
    opts = parser.parse_args(argv)
    if not opts.images and not opts.merge:
        parser.error("no images: name images, folders, or .txt lists")
    if opts.shard and opts.merge:
        parser.error("--merge joins the shards when all are done; give it without --shard")
    if (opts.shard or opts.merge) and not opts.out:
        parser.error("--shard and --merge need the --out that all shards share")
    if opts.shard and opts.overwrite:
        parser.error("--overwrite would remove the work of other shards; remove the folder instead")
    return opts


def results(
    given: list[inputs.File],
    opts: argparse.Namespace,
    network: tuple,
    bad: BadRecords,
    skipped_files: Counter,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[Found]:
    """What is found in each wanted image that can be read, in order; others are noted in `bad`.

    network: model, postprocess, preset, device and threshold of `tiles.find`.
    """

    def read() -> Iterator[tuple[int, str, Path, Image.Image]]:
        every = opts.pages == "all"
        for file in progress(given, desc="predicting", leave=False):
            numbers = list(filter(wanted, range(file.number, file.last + 1)))
            left = iter(numbers)
            number = next(left)
            try:
                for name, image in inputs.images_in_file(file, numbers, every, skipped_files):
                    yield number, name, file.path, image
                    number = next(left, number)
            except InputError as error:
                page = number - file.number + 1
                later = f", page {page} and later" if page > 1 else ""
                bad.note(error, file.path, f"image {number}{later}", number)

    items = read()
    while several := list(islice(items, opts.batch_size)):
        found = tiles.find([image for *_, image in several], *network)
        yield from ((*item, result) for item, result in zip(several, found, strict=True))


def following(opts: argparse.Namespace, path: Path, out: Path) -> dict[str, str]:
    """The commands that go on from the results in `out`."""
    if sets := [name for name in output.SETS if name in opts.save]:
        return {"when they are corrected": command("check_data", out / sets[0])}
    what = "to correct them in LabelMe"
    if len(opts.images) > 3:
        other = " and another --out" if opts.out else ""
        return {what: f"the same command with --save labelme{other}"}
    given, defaults = vars(opts), vars(parse(["IMAGE"]))
    chosen = {name: given[name] for name in FINDING if given[name] != defaults[name]}
    words = [*opts.images, "--checkpoint", path, *arguments(**chosen), "--save", "labelme"]
    return {what: command("predict", *words)}


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """Goes on after images that cannot be read, and lists them at the end.

    Args:
        builder: rebuilds the model; to be given if it was trained with parts not in the zoo.
    Raises:
        InputError: at the end, if an image could not be read and was not to be left out.
    """
    opts = parse(argv)
    if opts.merge:
        return merge(opts)
    if not opts.shard:
        files.require_free(opts.out, opts.overwrite, output.MARK)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    named, skipped_files = inputs.images_of(opts.images, opts.recursive)
    loaded = backends.load(opts.checkpoint, builder, opts.image_size, opts.tiles)
    source, content, model, _, postprocess, preset = loaded
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    postprocess.duplicate_iou = opts.duplicate_iou
    network = fold_batchnorms(model.to(device)), postprocess, preset, device, threshold
    categories = [{"id": each["id"], "name": each["name"]} for each in content["classes"]]
    given = inputs.list_files(named, opts.pages == "all")
    bad = BadRecords(skip=True)
    if opts.shard:
        about = {
            "checkpoint": files.sha256(source),
            "images": given[-1].last,
            "list of images": list(named),
            "shards": opts.shard.count,
            "threshold": threshold,
            "tiles": preset.tiles,
            "categories": categories,
            **{
                name: json.loads(json.dumps(getattr(opts, name)))
                for name in ("image_size", "duplicate_iou", "pages", "save", "colour_by")
            },
        }
        shards.begin(opts.out, about)
        return write_shard(opts, given, network, about, bad, skipped_files)
    out = opts.out or files.next_free(PREDICTIONS)
    with files.atomic_folder(out, opts.overwrite, output.MARK) as folder:
        written = output.Output(folder, categories, opts.save, opts.colour_by)
        for number, name, file, image, result in results(given, opts, network, bad, skipped_files):
            record = written.write_images(number, name, image, result)
            written.collect(record, file, image)
        sentences = finish(written, bad, given[-1].last)
    report(written, sentences, out, bad)
    info(
        f"{written.summary(given[-1].last)}, scores above {threshold:.3f} ({origin}): {out}"
        f"{inputs.skipped_text(skipped_files)}"
    )
    show_next(following(opts, source, out))
    if not opts.skip_bad_records:
        skipped.require_none(bad, given[-1].last, out / skipped.NAME)


def write_shard(
    opts: argparse.Namespace,
    given: list[inputs.File],
    network: tuple,
    about: dict,
    bad: BadRecords,
    skipped_files: Counter,
) -> None:
    """Does what is left of a shard; raises InputError at the end, as `main`."""
    own, out = opts.shard, opts.out
    with shards.opened(out, own) as records:
        before = set(records.done)

        def wanted(number: int) -> bool:
            return own.has(number) and number not in before

        left = [file for file in given if any(map(wanted, range(file.number, file.last + 1)))]
        written = output.Output(out, about["categories"], opts.save, opts.colour_by)
        for number, name, path, image, result in results(
            left, opts, network, bad, skipped_files, wanted
        ):
            record = written.write_images(number, name, image, result)
            records.add(record | {"path": os.path.abspath(path)})
        for one in bad:
            # The pages after an unreadable one cannot be read either.
            last = next(file.last for file in reversed(given) if file.number <= one.image_id)
            records.add({"bad": one._asdict(), "last": last})
        skipped.report_skipped(bad)
        total = len(range(own.index, about["images"] + 1, own.count))
        info(
            f"shard {own}: {len(records.done)} of {total} images, {len(before)} of them done "
            f"before{inputs.skipped_text(skipped_files)}"
        )
        each = shards.every_shard(out, about)
        unfinished = any(records.missing(shard, about["images"]) for shard, records in each)
        when = f"when all {own.count} shards are done" if unfinished else "join the shards"
        show_next({when: command("predict", "--merge", "--out", out)})
    if not opts.skip_bad_records:
        skipped.require_none(bad, total)


def merge(opts: argparse.Namespace) -> None:
    """Joins what the shards wrote; raises InputError as `main`, and if a shard is not finished."""
    about = shards.read_run(opts.out)
    records, bad = shards.joined(opts.out, about)
    written = output.Output(opts.out, about["categories"], about["save"])
    written.remove()
    for record in progress(records, desc="merging", leave=False):
        try:
            written.collect(record, Path(record["path"]))
        except FileNotFoundError:
            raise InputError(
                f"{record['path']}: is missing, and {', '.join(written.sets)} hold copies of the "
                "images; put it back there and merge again"
            ) from None
    sentences = finish(written, bad, about["images"])
    report(written, sentences, opts.out, bad)
    info(f"{written.summary(about['images'])} of {about['shards']} shards: {opts.out}")
    if not opts.skip_bad_records:
        skipped.require_none(bad, about["images"], opts.out / skipped.NAME)


def finish(written: output.Output, bad: BadRecords, total: int) -> list[str]:
    """Writes the tables and sets; returns what these cannot hold. Raises InputError if there is no
    image.
    """
    if total == len(bad) == 1:
        raise InputError(next(iter(bad)).reason)
    if not written.coco["images"]:
        skipped.report_skipped(bad)
        raise InputError(f"none of {total} images can be read, as listed above; name others")
    skipped.write(written.folder, bad)
    return written.write()


def report(written: output.Output, sentences: list[str], out: Path, bad: BadRecords) -> None:
    """Prints what the results cannot show."""
    if text := draw.class_numbers([each.name for each in written.classes]):
        info(text)
    for sentence in sentences:
        info(sentence)
    skipped.report_skipped(bad, out / skipped.NAME)


if __name__ == "__main__":
    options.run_entry(main)
