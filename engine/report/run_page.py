"""The page of a run, report.html: what was trained, how it went, what it finds, how to go on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data.dataset import CocoDataset
from data.errors import first_of
from engine import checkpoint, files, log, options, start_weights
from engine.coco_ap import NOTHING, Scores
from engine.commands import command, with_checkpoint
from engine.report import results_page, summary
from engine.report.charts import Line, lines
from engine.report.page import (
    Html,
    charts,
    details,
    element,
    joined,
    page,
    picture,
    section,
    table,
)  # fmt: skip
from engine.report.results_page import gaps
from engine.report.run_facts import RunFacts, evaluated_split, sentence
from engine.report.warnings import warnings_of
from engine.values import shown

NAME = "report.html"
HUES = 8  # of the page
BATCH_WIDTH = 720  # of the training batch
LISTED = 60  # names of tensors
GROWN = 3  # largest value of a loss term over its first one, from which it is a main term
LOADED = ("loaded", "missing", "other shape", "unexpected")
NOT_TERMS = {
    *("iteration", "epoch", "minutes", "cpu_minutes", "lr", "loss", "grad_norm", "skipped"),
    *("seconds", "images_per_second"),
}
SECTIONS = (
    ("time", "Over time"), ("threshold", "Threshold"), ("confusion", "Confusion"),
    ("classes", "Classes"), ("images", "Images"), ("diagnosis", "Diagnosis"),
    ("training", "Training"), ("next", "Next steps"),
)  # fmt: skip


def build(
    folder: Path,
    evidence: Mapping[str, Any] | None = None,
    dataset: CocoDataset | None = None,
    missing: str = "",
) -> str:
    """The page as HTML, of what the folder has.

    Args:
        evidence: the content of evidence.json, if it is there.
        dataset: what `evidence` is about, for its images.
        missing: why there is no evidence, in a sentence.
    Raises:
        InputError: if the folder has no checkpoint of a run.
    """
    content, best = summary.checkpoints(folder)
    chosen = files.read_json(folder / options.MARK) or {}
    derived = chosen.get("derived") or {}
    length = content["options"]["iterations"] or derived.get("iterations") or 0
    evaluations = log.read_csv(folder / "metrics.csv")
    found = evidence["warnings"] if evidence else warnings_of(RunFacts.read(folder))
    parts = [
        results_page.warnings(found),
        element("p", "No warnings.", kind="good") if evidence and not found else "",
        *(results(best, evaluations) if best else []),
        over_time(log.read_jsonl(folder / "log.jsonl"), evaluations, best),
    ]
    if evidence:
        parts += [results_page.threshold(evidence), results_page.confusion(evidence)]
        parts.append(results_page.classes(evidence["classes"], evidence["split"]))
        parts.append(results_page.images(evidence, dataset))
        parts.append(results_page.diagnosis(evidence["diagnosis"]))
    elif best:
        split = best["about"]["split"]
        parts.append(results_page.classes(Scores(**best["scores"]).headline_per_class, split))
    if missing:
        parts.append(element("p", missing, kind="warn"))
    parts += [training(folder, content, chosen), go_on(folder, best, content["iteration"] < length)]
    body = joined(part for part in parts if part)
    links = [
        element("a", title, href=f"#{name}") for name, title in SECTIONS if f'id="{name}"' in body
    ]
    return page(
        folder.name, element("h1", folder.name), lead(folder, content, length),
        element("nav", *links), body,
    )  # fmt: skip


def lead(folder: Path, content: checkpoint.Fields, length: int) -> Html:
    """What was trained on what, from which weights, in a few sentences.

    Args:
        length: the iterations that were asked for.
    """
    opts, about, done = content["options"], content["about"], content["iteration"]
    source = Path(opts["pretrained"]).name if opts["pretrained"] else "random values"
    if report := files.read_json(folder / "weights.json"):
        source += f" ({report['source']})"
    minutes = content["seconds"] / 60
    time = f"{minutes / 60:.1f} hours" if minutes > 120 else f"{minutes:.0f} minutes"
    first = (
        f"{opts['model']}, {about['parameters'] / 1e6:.1f} M parameters, trained for "
        f"{summary.epochs_of(content):.1f} epochs ({time}) from {source}, on "
        f"{opts['data'] or opts['train_json']}."
    )
    parts = [element("p", first, kind="lead")]
    if done < length:
        text = f"Not finished: iteration {done:,} of {length:,}; the same command with --resume"
        parts.append(element("p", f"{text} goes on.", kind="warn"))
    second = f"{about['train']}; evaluated on {about['val']}."
    return joined([*parts, element("p", second, kind="faint")])


def results(best: checkpoint.Fields, evaluations: Sequence[Mapping[str, str]]) -> list[Html]:
    """The numbers of the best weights."""
    row = next((row for row in evaluations if int(row["iteration"]) == best["iteration"]), {})
    on_train = float(row["train/AP"]) if row.get("train/AP") else None
    about = element("p", sentence(summary.about_best(best)), kind="faint")
    parts = [results_page.headline(Scores(**best["scores"]), on_train), about]
    if best["grid"]:
        text = f"Ground truth through the mask grid and back: AP {best['grid']['AP']:.3f}."
        parts.append(element("p", text, kind="faint"))
    return parts


def over_time(
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, str]],
    best: checkpoint.Fields | None,
) -> Html:
    """AP, losses, learning rate, gradients and speed by epoch."""
    mark = None
    if best and len(evaluations) > 1 and best["iteration"] != int(evaluations[-1]["iteration"]):
        mark = (summary.epochs_of(best), "best")
    steps = [row for row in rows if {"loss", "epoch"} <= row.keys()]  # others: only skipped steps
    terms = [name for name in (steps[-1] if steps else ()) if name not in NOT_TERMS]
    layers = [name for name in terms if any(map(str.isdigit, name))]
    values = {name: [row[name] for row in steps if name in row] for name in layers}
    growth = {name: max(each) / max(each[0], 1e-9) for name, each in values.items()}
    grown = sorted((n for n in layers if growth[n] > GROWN), key=growth.get, reverse=True)
    main = [*(name for name in terms if name not in layers), *grown][:HUES]

    def line(key: str, name: str = "", hue: int = 0, noisy: bool = True) -> Line:
        own = [row for row in steps if key in row]
        epochs, values = [row["epoch"] for row in own], [row[key] for row in own]
        return Line(name or key, epochs, values, hue, noisy=noisy)

    rest = [name for name in terms if name not in main]
    rest = [lines(name, [line(name, hue=7)], "epoch", log=True) for name in rest]
    of_loss, norm = [line(key, hue=i) for i, key in enumerate(main)], "norm before clipping"
    return section(
        "Over time",
        charts([
            lines("AP", ap_lines(evaluations), "epoch", mark=mark),
            lines("Training loss", [line("loss", "loss")], "epoch", log=True),
            lines("Main loss terms", of_loss, "epoch", log=True),
            lines("Learning rate", [line("lr", "highest of all layers", noisy=False)], "epoch"),
            lines("Gradients", [line("grad_norm", norm)], "epoch", log=True),
            lines("Speed", [line("images_per_second", "images per second")], "epoch"),
        ]),
        details(f"{len(rest)} more terms of the loss", charts(rest)) if rest else "",
        id="time",
    )  # fmt: skip


def ap_lines(evaluations: Sequence[Mapping[str, str]]) -> list[Line]:
    """AP and AP50 of the evaluated split, and AP on train, by epoch; none without an evaluation."""
    if not evaluations:
        return []
    split = evaluated_split(evaluations)
    epochs, found = [float(row["epoch"]) for row in evaluations], []
    for hue, (of, key) in enumerate(((split, "AP"), ("train", "AP"), (split, "AP50"))):
        y = gaps([float(row.get(f"{of}/{key}") or NOTHING) for row in evaluations])
        last = next((f"{value:.3f}" for value in reversed(y) if math.isfinite(value)), "")
        found.append(Line(f"{of} {key}", epochs, y, hue, of == "train", points=True, value=last))
    return found


def training(folder: Path, content: checkpoint.Fields, chosen: Mapping[str, Any]) -> Html:
    """Facts, options with their origin, the load report, the training batch."""
    facts = [element("li", text) for text in summary.facts(folder, content)]
    start = [element("p", text) for text in start_weights.describe(content["options"])]
    parts = [element("ul", *facts), batch(folder / "train_batch.png")]
    parts += [element("h3", "Weights at the start"), *start, load_report(folder)]
    parts += [element("h3", "Options"), *decisions(chosen)] if chosen else []
    return section("Training", *parts, id="training")


def batch(path: Path) -> Html:
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except OSError:
        return Html()
    image.thumbnail((BATCH_WIDTH, 4 * BATCH_WIDTH))
    return picture(image, "A training batch, as the network sees it.", 62, kind="wide")


def load_report(folder: Path) -> Html:
    """What the start loaded: counts, and the names of the rest in folds; empty if nothing was."""
    found = files.read_json(folder / "weights.json")
    if not found:
        return Html()
    parts = [(name, found[name.replace(" ", "_")]) for name in LOADED]
    rows = [(name, part["tensors"], part["parameters"]) for name, part in parts]
    texts = [element("p", found["headline"]), table(("", "tensors", "parameters"), rows)]
    for name, part in parts[1:]:
        names = element("p", first_of(part["names"], LISTED), kind="faint")
        texts += [details(f"{part['tensors']} {name}", names)] * bool(part["tensors"])
    texts += [element("p", text, kind="warn") for text in found["warnings"]]
    if found["random"]:
        text = f"random at the start: {', '.join(found['random'])}"
        texts.append(element("p", text, kind="faint"))
    return joined(texts)


def decisions(chosen: Mapping[str, Any]) -> list[Html]:
    """The options that are not defaults, with their origin, and the defaults in a fold. The recipe,
    which a script may have given, is one of the facts.
    """
    origins, derived, keywords = (chosen.get(key) or {} for key in ("origins", "derived", "set"))
    other = ("origins", "derived", "set", "recipe")
    values = {key: value for key, value in chosen.items() if key not in (*other, *derived)}
    values = values | {f"set.{key}": value for key, value in keywords.items()} | derived
    origins = origins | dict.fromkeys(derived, "data")
    order = ("user", "weights", "data", "run", "recipe", "machine")
    rows = [(name, shown(value), origins.get(name, "")) for name, value in values.items()]
    made = sorted((row for row in rows if row[2] in order), key=lambda row: order.index(row[2]))
    rest = [row for row in rows if row[2] not in order]
    header = ("option", "value", "from")
    return [
        table(header, made, long=[1]),
        details(f"{len(rest)} defaults", table(header, rest, long=[1])) if rest else Html(),
    ]


def go_on(folder: Path, best: checkpoint.Fields | None, stopped: bool) -> Html:
    """The commands that come next."""
    of_it = ("--checkpoint", folder / "best.pt")
    found = {"to go on training": "the same command with --resume"} if stopped else {}
    if best:
        found |= with_checkpoint(folder / "best.pt")
        found["more images of val"] = command("visualize", *of_it, "--count", 24)
        found["on other data"] = command("test", *of_it, "--data", "DIR")
    parts = [
        joined([element("h3", what.capitalize()), element("pre", line)])
        for what, line in found.items()
    ]
    return section("Next steps", *parts, id="next")
