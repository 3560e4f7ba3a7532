"""A run folder -> its summary.md: what was trained, how long, and how good it is."""

from collections import Counter
from pathlib import Path

from data.errors import InputError, printable
from engine import checkpoint, files, log, options, skipped, start_weights
from engine.coco_ap import NOTHING, Scores
from engine.report import draw, evidence
from engine.report.run_facts import RunFacts
from engine.report.tables import number, pipes, table
from engine.report.warnings import warnings_of

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
    evidence.NAME: "every image and class of val, and why AP is low",
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
    if report := files.read_json(folder / "weights.json"):
        lines.append(printable(f"started from: {report['path']}: {report['source']}"))
    if text := draw.class_numbers([one["name"] for one in content["classes"]]):
        lines.append(text)
    if content.get("skipped"):
        lines.append(f"skipped: {content['skipped']} steps with a loss or gradient not finite")
    if records := skipped.read(folder):
        lines.append(f"left out: {len(records)} bad records ({skipped.NAME})")
    return lines


def about_best(best: checkpoint.Fields) -> str:
    """What the weights of `best.pt` are: none are called best that no score chose."""
    iteration, split = best["iteration"], best["about"]["split"]
    reasons = {NOTHING: "has no objects to score", 0.0: "was never scored above 0"}
    if reason := reasons.get(best["best"]["AP"]):
        return f"weights of the last evaluation: iteration {iteration}, split {split} {reason}"
    return f"best weights: iteration {iteration}, split {split}"


def checkpoints(folder: Path) -> tuple[checkpoint.Fields, checkpoint.Fields | None]:
    """The newest checkpoint of a run, and the best one, if there is one.

    Raises:
        InputError: if the folder has no checkpoint of a run.
    """
    last, best = (checkpoint.load_if_whole(folder / name) for name in ("last.pt", "best.pt"))
    if not (last or best):
        raise InputError(f"{folder}: no run with a checkpoint; give a folder below {options.RUNS}/")
    return last or best, best


def summary(folder: Path) -> str:
    """The text of summary.md; raises as `checkpoints`."""
    content, best = checkpoints(folder)
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
    found = evidence.load(folder).get("warnings")
    if found is None:
        found = warnings_of(RunFacts.read(folder))
    lines += [f"\n**{each['what']}.** {each['why']} {each['do']}" for each in found]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """Writes summary.md of a run folder."""
    files.write_text(folder / "summary.md", summary(folder))


def contents(folder: Path) -> str:
    """The files of a run folder, one line each."""
    there = {name: what for name, what in CONTENTS.items() if (folder / name).exists()}
    return "\n".join(f"  {name:<16}{what}" for name, what in there.items())
