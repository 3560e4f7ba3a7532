"""Entry: a checkpoint and a split -> a sheet of image / ground truth / prediction."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from data.dataset import CocoDataset
from data.errors import InputError
from data.loaders import spread
from engine import backends, checkpoint, evaluate, files, options, skipped
from engine.commands import command, show_next
from engine.datasets import open_split
from engine.inference import predictions
from engine.log import info
from engine.report import draw
from engine.values import device_for, fraction
from mobileinst import zoo


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Draw image / ground truth / prediction, one column per image.")
    add, positive = parser.add_argument, options.positive
    add("--checkpoint", type=Path, help=options.CHECKPOINT)
    add("--split", choices=("train", "val", "test"), default="val", help=options.SPLIT)
    add("--count", type=positive, default=8, help="number of images, spread evenly")
    add("--columns", type=positive, default=4, help="images beside each other")
    least = "least score that is drawn; the one with the best F1 on val if not given"
    add("--threshold", type=fraction, help=least)
    options.add_colour_by(parser)
    options.add_image_size(parser)
    options.add_tiles(parser)
    options.add_duplicate_iou(parser)
    where = "visualize-NNN beside the checkpoint if not given"
    options.add_out(parser, f"image file, or a folder for it; {where}")
    options.add_data(parser)
    options.add_device(parser, workers=True)
    return parser.parse_args(argv)


def prediction_grid(
    dataset: CocoDataset,
    detections: list[dict],
    threshold: float,
    *,
    title: str,
    columns: int = 4,
    colour_by: str = "object",
) -> Image.Image:
    """Draws all images of a data set, with all `detections` (COCO results above `threshold`).

    Raises:
        InputError: if an image cannot be read and is not to be left out, or if none can be read.
    """
    index_of = {category.id: category.index for category in dataset.categories}
    drawn = []
    for index in range(len(dataset)):
        try:
            image, truth = dataset.read(index)
        except InputError as error:
            dataset.leave_out(index, error)
            continue
        found = [
            (index_of[each["category_id"]], each["segmentation"], each["score"])
            for each in detections
            if each["image_id"] == truth.image_id
        ]
        objects = draw.Objects(truth.labels, truth.rles)
        predictions = draw.Objects(*zip(*found)) if found else draw.Objects([], [])
        caption = dataset.images[index].file_name
        drawn.append(draw.Example(image, objects, predictions, truth.ignore, caption))
    if not drawn:
        raise InputError(f"none of the images in {dataset.folder} can be read: give others")
    layout = {"title": title, "columns": columns, "colour_by": colour_by}
    return draw.grid(drawn, dataset.class_names, threshold=threshold, **layout)


def title_of(path: Path, content: dict, split: str) -> str:
    """The title of a grid: the checkpoint with its AP, and the split of the images."""
    ap = content["best"].get("AP", -1.0)
    scored = f" (AP {ap:.3f} on {content['about']['split']})" if ap >= 0 else ""
    return f"{path.parent.name}/{path.name}{scored}, images of {split}"


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """Goes on after images that cannot be read, and lists them at the end.

    Args:
        builder: rebuilds the model; to be given if it was trained with parts not in the zoo.
    Raises:
        InputError: at the end, if an image could not be read and was not to be left out.
    """
    opts = parse(argv)
    files.require_free(opts.out, opts.overwrite)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    loaded = backends.load(opts.checkpoint, builder, opts.image_size, opts.tiles)
    path, content, model, criterion, postprocess, preset = loaded
    if criterion is None:
        evaluate.require_data(opts, path)
    dataset = open_split(opts, (path, content) if criterion else None)
    dataset.use_classes(content["classes"], str(path))
    dataset.bad.skip = True  # goes on after images that cannot be read
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    postprocess.duplicate_iou = opts.duplicate_iou
    shown = dataset.subset(spread(len(dataset), opts.count))
    settings = {"preset": preset, "workers": opts.workers, "device": device}
    settings["threshold"] = threshold
    detections = predictions(model.to(device), postprocess, shown, **settings)
    title = title_of(path, content, opts.split)
    layout = {"title": title, "columns": opts.columns, "colour_by": opts.colour_by}
    sheet = prediction_grid(shown, detections, threshold, **layout)
    name = f"{path.stem}_{opts.split}.png"
    out = files.output(opts.out, path.parent, "visualize", name)
    files.save_image(out, sheet, "name another --out")
    if text := draw.class_numbers(dataset.class_names):
        info(text)
    skipped.report_skipped(dataset.bad)
    info(
        f"{len(shown)} images of the {opts.split} split, scores above {threshold:.3f} "
        f"({origin}): {out}"
    )
    predict = command("predict", "IMAGES", "--checkpoint", path)
    show_next({"on images of your own": predict})
    if not opts.skip_bad_records:
        skipped.require_none(dataset.bad, len(shown))


if __name__ == "__main__":
    options.run_entry(main)
