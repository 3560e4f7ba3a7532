"""Entry: a checkpoint and a split -> the table of AP."""

import argparse
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch

from data import rle
from data.errors import InputError
from engine import Command, backends, checkpoint, dist, files, options, skipped
from engine.coco_ap import FIELDS, Scores, score
from engine.commands import arguments, command, data_arguments, show_next
from engine.datasets import open_split
from engine.fit import too_many_objects
from engine.inference import predictions
from engine.log import info
from engine.report import diagnose
from engine.report.metrics_block import MeanLoss, all_metrics, block
from engine.report.summary import epochs_of
from engine.report.tables import side_by_side, table
from engine.values import device_for
from mobileinst import zoo

DIAGNOSIS = "diagnose.json"  # beside the results
DRAWING = "image_size", "tiles", "duplicate_iou"  # options of visualize.sh as well
SCORING = *DRAWING, "resize", "max_detections"  # change scores


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Evaluate a checkpoint: the 12 COCO numbers and a per-category table.")
    add = parser.add_argument
    add("--checkpoint", type=Path, help=options.CHECKPOINT)
    add("--split", choices=("train", "val", "test"), default="val", help=options.SPLIT)
    options.add_image_size(parser)
    options.add_duplicate_iou(parser)
    options.add_tiles(parser)
    add(
        "--resize", choices=("antialiased", "plain", "both"), default="antialiased",
        help="how images shrink; plain bilinear is how phones and browsers do it; both prints the "
        "numbers side by side, the rest is of antialiased",
    )  # fmt: skip
    add("--batch-size", type=options.positive, default=8, help="images at a time; no effect on AP")
    most = "most detections per image; the model's if not given"
    add("--max-detections", type=options.positive, help=most)
    where = "test-NNN beside the checkpoint if not given"
    options.add_out(parser, f"results json, or a folder for it; {where}")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--ground-truth-as-predictions", action="store_true",
        help="score the ground truth itself; AP below 100 is a fault of the data",
    )  # fmt: skip
    what.add_argument(
        "--metrics-block", action="store_true",
        help="also print loss and speed, and all numbers as lines of the form key = value",
    )  # fmt: skip
    what.add_argument(
        "--diagnose", action="store_true",
        help="also print why objects are missed, and write it to diagnose.json beside --out",
    )  # fmt: skip
    options.add_data(parser)
    options.add_device(parser, workers=True)
    return parser.parse_args(argv)


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """`builder` rebuilds the model; to be given if it was trained with parts not in the zoo."""
    with dist.synced_errors(InputError):
        opts = parse(argv)
    torch.set_num_threads(opts.threads)
    if not opts.ground_truth_as_predictions:
        score_checkpoint(opts, builder)
    elif dist.is_main_process():  # no network runs, so there is nothing to share
        score_ground_truth(opts)


def score_ground_truth(opts: argparse.Namespace) -> None:
    """Prints the table of the ground truth scored against itself; crowds are no predictions."""
    dataset = open_split(opts)
    given = vars(opts)  # with the data set of --checkpoint, if none was named
    ground_truth = dataset.ground_truth()
    info(f"the ground truth as predictions, {dataset.summary()}")
    objects = ground_truth["annotations"]
    perfect = [{**each, "score": 1.0} for each in objects if not each["iscrowd"]]
    most = max(Counter(each["image_id"] for each in perfect).values(), default=0)
    limit = opts.max_detections or max(100, most)
    scores = score(ground_truth, perfect, max_dets=limit)
    info(table(scores))
    skipped.report_skipped(dataset.bad)
    if min(scores.metrics["AP"], scores.headline["AP"]) < 1:
        words = data_arguments(given | {"skip_bad_records": None})  # it lists them in any case
        show_next({"what is wrong with the data": command("check_data", *words)})
    else:
        words = data_arguments(given)
        show_next({"self-test of a training": command("train", *words, "--overfit", 8)})


def require_data(opts: argparse.Namespace, path: Path) -> None:
    """Checks that the options name the data for an exported file, raises InputError."""
    if not (opts.data or opts.train_json or opts.val_json):
        raise InputError(f"{path}: an exported file names no data set; give one with --data")


def score_checkpoint(
    opts: argparse.Namespace, builder: checkpoint.Builder = zoo.build_from_config
) -> Scores | None:
    """Prints the table, and the block of metrics if wanted; writes the results json. Returns the
    scores on rank 0, None on the others.

    Goes on after images that cannot be read, which are not scored, and lists them at the end.

    Raises:
        InputError: at the end, if an image could not be read and was not to be left out.
    """
    words = data_arguments(vars(opts))
    with dist.synced_errors(InputError):
        files.require_free(opts.out, opts.overwrite)
        if opts.diagnose and opts.out and opts.out.suffix and not opts.out.is_dir():
            files.require_free(opts.out.with_name(DIAGNOSIS), opts.overwrite)
        device = dist.device_of_rank(device_for(opts.device))
        loaded = backends.load(opts.checkpoint, builder, opts.image_size, opts.tiles)
        path, content, model, criterion, postprocess, preset = loaded
        trained = (path, content) if criterion else None  # exported files name no data
        if not trained:
            require_data(opts, path)
            if opts.metrics_block:
                raise InputError(f"{path}: has no loss for --metrics-block; leave it out")
    dataset = dist.local_first(lambda: open_split(opts, trained), InputError)
    with dist.synced_errors(InputError):
        dataset.use_classes(content["classes"], str(path))
        dataset.bad.skip = True  # goes on after images that cannot be read
    limit = opts.max_detections or postprocess.max_detections
    postprocess.max_detections = limit
    postprocess.duplicate_iou = opts.duplicate_iou
    info(f"{path}: {loaded.title}, {dataset.summary()}")
    missed = "cannot be found; raise it with --max-detections"
    if text := too_many_objects(dataset, limit, "detections per image", missed):
        info(text)
    loss = MeanLoss(criterion) if opts.metrics_block else None
    both = opts.resize == "both"
    resize = "antialiased" if both else opts.resize
    settings = {
        "preset": replace(preset, resize=resize),
        "batch_size": opts.batch_size,
        "device": device,
        "workers": opts.workers,
    }
    model = model.to(device)
    if both:
        other = settings | {"preset": replace(preset, resize="plain")}
        plain = predictions(model, postprocess, dataset, **other)
    if opts.diagnose:
        every = predictions(model, diagnose.one_per_query(postprocess), dataset, **settings)
    start = time.perf_counter()
    detections = predictions(model, postprocess, dataset, **settings, callback=loss)
    if loss:
        loss.gather()
    if not dist.is_main_process():
        return None
    ground_truth = dataset.ground_truth()  # without the images that could not be read
    scores = score(ground_truth, detections, max_dets=limit)
    info(table(scores))
    if both:
        of_plain = score(ground_truth, plain, max_dets=limit)
        info(f"\n{side_by_side({'antialiased': scores, 'plain bilinear': of_plain})}")
    results = {
        "checkpoint": str(path),
        "split": opts.split,
        "resize": resize,
        "tiles": preset.tiles,
        "categories": ground_truth["categories"],
        "skipped": [one._asdict() for one in dataset.bad],
        "scores": asdict(scores),
    }
    if both:
        results["scores_plain"] = asdict(of_plain)
    if loss:
        seconds = time.perf_counter() - start
        results["metrics"] = all_metrics(scores, loss, seconds, epochs_of(content))
        info(f"\n{block(results['metrics'])}\n")
    results["detections"] = [
        {key: each[key] for key in FIELDS} | {"segmentation": rle.to_json(each["segmentation"])}
        for each in detections
    ]
    name = f"{path.stem}_{opts.split}_results.json"
    out = files.output(opts.out, path.parent, "test", name)
    files.write_json(out, results, "name another")
    info(f"results: {out}")
    if opts.diagnose:
        found = diagnose.diagnose(ground_truth, every, scores, opts.duplicate_iou)
        info(f"\n{diagnose.text(found)}\n")
        about = {"checkpoint": str(path), "split": opts.split}
        files.write_json(out.with_name(DIAGNOSIS), about | found, "name another --out")
        info(f"diagnosis: {out.with_name(DIAGNOSIS)}")
    skipped.report_skipped(dataset.bad, out)
    words = ["--checkpoint", path, *words, *(["--split", opts.split] * (opts.split != "val"))]
    defaults = vars(parse([]))
    chosen = {name: vars(opts)[name] for name in SCORING if vars(opts)[name] != defaults[name]}
    again = command("test", *words, *arguments(**chosen), "--diagnose")
    drawn = arguments(**{name: chosen[name] for name in DRAWING if name in chosen})
    why = {"why objects are missed": again}
    show_next(
        ({} if opts.diagnose else why)
        | {
            "images and predictions": command("visualize", *words, *drawn),
            "on images of your own": command("predict", "IMAGES", "--checkpoint", path),
        }
    )
    if not opts.skip_bad_records:
        skipped.require_none(dataset.bad, len(dataset), out)
    return scores


sys.modules[__name__].__class__ = Command

if __name__ == "__main__":
    options.run_entry(main)
