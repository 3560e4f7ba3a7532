"""Entry: images -> overlays, instance maps, a COCO json and a table of the objects, and sets for
annotation tools to correct.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from data.errors import BadRecords, InputError
from engine import backends, checkpoint, files, inputs, options, output, skipped, tiles
from engine.commands import command, show_next
from engine.log import info, progress
from engine.report import draw
from engine.values import device_for, some_of
from mobileinst import zoo
from mobileinst.deploy import fold_batchnorms

PREDICTIONS = Path("predictions")

Found = tuple[int, str, Path, Image.Image, dict]  # number, name, file, image, result


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
    options.add_device(parser)
    return parser.parse_args(argv)


def results(
    given: Iterable[inputs.File],
    opts: argparse.Namespace,
    network: tuple,
    threshold: float,
    bad: BadRecords,
    passed_over: Counter,
) -> Iterator[Found]:
    """What is found in each image that can be read, in order; the other ones are noted in `bad`.

    network: model, postprocess, preset and device of `tiles.find`.
    """

    def read() -> Iterator[tuple[int, str, Path, Image.Image]]:
        for file in progress(given, desc="predicting", leave=False):
            number = file.number
            try:
                for place, name, image in inputs.images_in_file(
                    file, opts.pages == "all", passed_over
                ):
                    number = place + 1
                    yield place, name, file.path, image
            except InputError as error:
                page = number - file.number + 1
                later = f", page {page} and later" if page > 1 else ""
                bad.note(error, file.path, f"image {number}{later}", number)

    items = read()
    while several := list(islice(items, opts.batch_size)):
        images = [image for *_, image in several]
        found = tiles.find(images, *network, threshold, opts.tiles)
        yield from ((*item, result) for item, result in zip(several, found, strict=True))


def following(opts: argparse.Namespace, path: Path, out: Path) -> dict[str, str]:
    """The commands that go on from the results in `out`."""
    if sets := [name for name in output.SETS if name in opts.save]:
        return {"when they are corrected": command("check_data", out / sets[0])}
    words = list(opts.images) if len(opts.images) <= 3 else ["IMAGES"]
    words += ["--recursive"] * opts.recursive + ["--checkpoint", path, "--save", "labelme"]
    return {"to correct them in LabelMe": command("predict", *words)}


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """Goes on after images that cannot be read, and lists them at the end.

    Args:
        builder: rebuilds the model; to be given if it was trained with parts not in the zoo.
    Raises:
        InputError: at the end, if an image could not be read and was not to be left out.
    """
    opts = parse(argv)
    files.require_free(opts.out, opts.overwrite, output.MARK)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    named, passed_over = inputs.images_of(opts.images, opts.recursive)
    loaded = backends.load(opts.checkpoint, builder, opts.image_size)
    source, content, model, _, postprocess, preset = loaded
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    postprocess.duplicate_iou = opts.duplicate_iou
    network = fold_batchnorms(model.to(device)), postprocess, preset, device
    categories = [{"id": each["id"], "name": each["name"]} for each in content["classes"]]
    bad, given = BadRecords(skip=True), inputs.numbered(named, opts.pages == "all")
    total = given[-1].number + given[-1].pages - 1
    out = opts.out or files.next_free(PREDICTIONS)
    with files.appearing(out, opts.overwrite, output.MARK) as folder:
        written = output.Output(folder, categories, opts.save, opts.colour_by)
        for number, name, path, image, result in results(
            given, opts, network, threshold, bad, passed_over
        ):
            record = written.write_images(number, name, image, result)
            written.collect(record, path, image)
        images = written.coco["images"]
        if total == len(bad) == 1:
            raise InputError(next(iter(bad)).reason)
        if not images:
            skipped.report_skipped(bad)
            raise InputError(f"none of {total} images can be read, as listed above; name others")
        sentences = written.write()
        skipped.write(folder, bad)
    if text := draw.numbered([each["name"] for each in categories]):
        info(text)
    for sentence in sentences:
        info(sentence)
    place = out / skipped.NAME
    skipped.report_skipped(bad, place)
    info(
        f"{len(written.rows)} objects in {len(images)} of {total} images, scores above "
        f"{threshold:.3f} ({origin}): {out}{inputs.in_words(passed_over)}"
    )
    show_next(following(opts, source, out))
    if not opts.skip_bad_records:
        skipped.require_none(bad, total, place)


if __name__ == "__main__":
    options.run_entry(main)
