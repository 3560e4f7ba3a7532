"""A run folder -> its summary.md: what was trained, how long, and how good it is."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

from data.errors import InputError, printable
from engine import checkpoint, files, log, options, skipped, start_weights
from engine.coco_ap import NOTHING, Scores
from engine.report import draw
from engine.report.tables import number, pipes, table

LOW_TRAIN_AP = 0.2
WIDE_GAP = 0.15  # between train AP and val AP, if val AP is also below two thirds of train AP

CONTENTS = {
    "best.pt": "best weights, with their score threshold",
    "last.pt": "to go on with --resume",
    "options.json": "every option and its origin",
    "split.json": "the parts of data that had no validation split",
    "metrics.csv": "one row per evaluation",
    "log.jsonl": "losses, rates and times",
    "weights.json": "what was loaded at the start",
    skipped.NAME: "bad records that were left out",
    "train_batch.png": "input and augmentation",
    "predictions.png": "image / ground truth / prediction",
    "summary.md": "tables and facts",
    "report.html": "all of it as a page, to open in a browser",
}


def images_per_step(content: checkpoint.Fields) -> int:
    opts = content["options"]
    return opts["batch_size"] * opts["accumulate"] * content["world_size"]


def epochs_of(content: checkpoint.Fields) -> float:
    """The number of epochs that the weights of a checkpoint were trained for."""
    return content["iteration"] * images_per_step(content) / content["num_images"]


def speed(rows: list[dict], per_step: int) -> str:
    """Images per second over the whole log, and the share of each part of a step."""
    parts = Counter()
    for row in rows:
        parts.update(row["seconds"])
    total = sum(parts.values())
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())
    return f"{len(rows) * per_step / total:.1f} images/s ({shares})"


def facts(folder: Path, content: checkpoint.Fields) -> list[str]:
    """One line per fact; `content` is that of the newest checkpoint."""
    opts, about = content["options"], content["about"]
    alone = content["world_size"] == 1
    processes = "" if alone else f" in {content['world_size']} processes"
    lines = [
        f"model: {opts['model']}, {about['parameters']:,} parameters",
        f"recipe: {opts['recipe'] or 'none'}",
        f"data: {opts['data'] or opts['train_json']}; {about['train']}; "
        f"evaluated on {about['val']}",
        f"length: {content['iteration']} iterations ({epochs_of(content):.1f} epochs), "
        f"{content['seconds'] / 60:.1f} minutes, {content['cpu_seconds'] / 60:.1f} CPU minutes "
        f"({'process' if alone else 'first process'} and loaders)",
        f"machine: {about['machine']}{processes}, torch {about['torch']}"
        + (", the same bits each time" if about["deterministic"] else ""),
    ]
    if rows := log.read_jsonl(folder / "log.jsonl"):
        lines.append(f"speed: {speed(rows, images_per_step(content))}")
    with suppress(LookupError, TypeError):  # missing, or not as a start wrote it
        report = files.read_json(folder / "weights.json")
        lines.append(printable(f"started from: {report['path']}: {report['source']}"))
    if text := draw.numbered([one["name"] for one in content["classes"]]):
        lines.append(text)
    if content.get("skipped"):
        lines.append(f"skipped: {content['skipped']} steps with a loss or gradient not finite")
    if records := skipped.read(folder):
        lines.append(f"left out: {len(records)} bad records ({skipped.NAME})")
    return lines


def evaluated_split(rows: list[dict]) -> str:
    """The name of the split in rows of metrics.csv that is not a part of the training set."""
    splits = [name.rpartition("/")[0] for name in rows[-1] if "/" in name]
    return next(split for split in splits if split != "train")


def remark(rows: list[dict]) -> str:
    """A low train AP or one far above that of the other split in the last row of metrics.csv, in a
    sentence; empty if there is neither.
    """
    if not rows or not rows[-1].get("train/AP"):
        return ""
    split = evaluated_split(rows)
    train, val = float(rows[-1]["train/AP"]), float(rows[-1][f"{split}/AP"])
    if train == NOTHING or val == NOTHING:
        return ""
    if train < LOW_TRAIN_AP:
        return (
            f"Train AP {train:.3f} is low: the weights do not fit the training images yet; train "
            "longer (--epochs), try another --lr, or a larger --image-size if objects are small."
        )
    if train - val > WIDE_GAP and val < 2 / 3 * train:
        return (
            f"Train AP {train:.3f} is far above {split} AP {val:.3f}: the weights overfit; more "
            "training images or stronger augmentation (--copy-paste, --scale, --colour) help more "
            "than longer training."
        )
    return ""


def about_best(best: checkpoint.Fields) -> str:
    """What the weights of `best.pt` are: none are called best that no score chose."""
    iteration, split = best["iteration"], best["about"]["split"]
    reasons = {NOTHING: "has no objects to score", 0.0: "was never scored above 0"}
    if reason := reasons.get(best["best"]["AP"]):
        return f"weights of the last evaluation: iteration {iteration}, split {split} {reason}"
    return f"best weights: iteration {iteration}, split {split}"


def summary(folder: Path) -> str:
    """The text of summary.md.

    Raises:
        InputError: if the folder has no checkpoint of a run.
    """
    last, best = (checkpoint.load_if_whole(folder / name) for name in ("last.pt", "best.pt"))
    content = last or best
    if not content:
        raise InputError(f"{folder}: no run with a checkpoint; give a folder below {options.RUNS}/")
    start = "\n\n".join(start_weights.describe(content["options"]))
    lines = [start, "", f"# {folder.name}", ""]
    lines += [f"- {line}" for line in facts(folder, content)]
    if best:
        lines += [f"- {about_best(best)}", ""]
        lines.append(table(Scores(**best["scores"]), markdown=True))
        if best["grid"]:
            limit = best["grid"]["AP"]
            lines += ["", f"Ground truth through the mask grid and back: AP {limit:.3f}"]
    if rows := log.read_csv(folder / "metrics.csv"):
        wanted = ("iteration", "epoch", "AP", "AP50")
        keys = [name for name in rows[0] if name.rpartition("/")[2] in wanted]
        cells = (
            [number(float(row[key])) if "/" in key and row[key] else row[key] for key in keys]
            for row in rows
        )
        lines += ["", pipes([keys, *cells], left=0)]
        if "train/AP" in keys:
            count = min(content["options"]["eval_train"], content["num_images"])
            lines += ["", f"train: the same {count} training images in each evaluation"]
        if text := remark(rows):
            lines += ["", text]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """Writes summary.md of a run folder."""
    with files.replacing(folder / "summary.md") as temporary:
        temporary.write_text(summary(folder), encoding="utf-8")


def contents(folder: Path) -> str:
    """The files of a run folder, one line each."""
    there = {name: what for name, what in CONTENTS.items() if (folder / name).exists()}
    return "\n".join(f"  {name:<16}{what}" for name, what in there.items())
