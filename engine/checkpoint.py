"""Checkpoints: plain tensors and plain types, written atomically, read without running code.

`last.pt` holds everything that resuming needs; `best.pt` the weights, averaged ones if the run
keeps an average, and what evaluation and prediction need.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from data.errors import InputError, first_of
from data.presets import EvalPreset
from data.records import Category
from engine import files
from engine.log import info
from engine.loop import NonFiniteError, Trainer
from mobileinst import weights, zoo
from mobileinst.set_prediction.losses import Criterion
from mobileinst.set_prediction.postprocess import Postprocess

# (config, seed=0) -> model, criterion, postprocess; the zoo's, or one with other parts.
Builder = Callable[..., tuple[nn.Module, Criterion, Postprocess]]

FORMAT = weights.FORMAT
FALLBACK_THRESHOLD = 0.3  # our choice, for weights whose F1 is undefined
FIX = "give a last.pt or best.pt of a run folder, or train one"


class Fields(dict):
    """A dict that names a missing key in an InputError."""

    def __init__(self, content: dict, where: str):
        super().__init__(content)
        self.where = where

    def __missing__(self, key: str):
        raise InputError(f"{self.where} holds no '{key}'; {FIX}")


def save(path: Path, content: dict) -> None:
    """Writes a checkpoint atomically; raises FailedRun, and keeps the file before, if it fails."""
    plain = {key: dict(one) if isinstance(one, Fields) else one for key, one in content.items()}
    with files.atomic_file(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT} | plain, file)


def load(path: Path) -> Fields:
    """Reads a checkpoint onto the CPU.

    Raises:
        InputError: if it is missing or not of this library; so does asking for a missing field.
    """
    try:
        content = weights.read(path, FIX)
    except weights.LoadError as error:
        raise InputError(str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this library; {FIX}")
    for name in content.keys() & {"options", "best"}:
        content[name] = Fields(content[name], f"{path}: its '{name}'")
    return Fields(content, f"{path}:")


def load_if_whole(path: Path) -> Fields | None:
    """Reads a checkpoint; None if it is missing, or cannot be used, which is printed."""
    if not path.exists():
        return None
    try:
        return load(path)
    except InputError as error:
        info(f"left out: {error}")
        return None


def load_or_newest(path: Path | None, runs: Path) -> tuple[Path, Fields]:
    """The given checkpoint, or that of the newest evaluated run, else of the newest run, with its
    age and score printed. Raises as `load`, and InputError if there is no run.
    """
    if path:
        return path, load(path)
    folders = files.newest_runs(runs)
    found = (folder / "best.pt" for folder in folders if (folder / "best.pt").exists())
    path = next(found, folders[0] / "last.pt")
    if newer := folders[: folders.index(path.parent)]:
        info(f"skipped, as without a best.pt yet: {first_of([str(each) for each in newer])}")
    content = load(path)
    ap, age = content["best"]["AP"], time.time() - path.stat().st_mtime
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, length = next((each for each in units if age >= 2 * each[1]), units[-1])
    score = f"AP {ap:.3f}" if ap > 0 else "never scored above 0"
    info(f"the newest run: {path}, {age / length:.0f} {unit} old, {score}")
    if ap <= 0:
        info(
            f"warning: {path} will find next to nothing; train it longer, or name another with "
            "--checkpoint"
        )
    return path, content


def score_threshold(best: dict, asked: float | None = None) -> tuple[float, str]:
    """The score threshold and its origin: the user's, that of the best F1 on val, or a default."""
    if asked is not None:
        return asked, "from --threshold"
    if best["threshold"] is None:
        return FALLBACK_THRESHOLD, "a default: no object was found at the evaluation"
    return best["threshold"], "the best F1 at the evaluation"


def describe_model(config: zoo.Config, classes: list[Category]) -> dict:
    """The fields of a checkpoint that describe its network: the config and the class map."""
    return {
        "config": config.to_dict(),
        "classes": [one._asdict() for one in classes],
    }


def state_of(trainer: Trainer) -> dict:
    """The fields of `last.pt` that come from the trainer, for `restore`."""
    return {
        "iteration": trainer.iteration,
        "skipped": trainer.skipped,
        "model": trainer.model.state_dict(),
        "average": trainer.average.model.state_dict() if trainer.average else None,
        "average_updates": trainer.average.updates if trainer.average else 0,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
    }


def restore(trainer: Trainer, state: dict) -> None:
    """Continues exactly from `state_of`. Learning rates and weight decays stay the trainer's."""
    trainer.iteration, trainer.skipped = state["iteration"], state["skipped"]
    trainer.model.load_state_dict(state["model"])
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
    trainer.schedule.apply(trainer.optimizer, max(0, trainer.iteration - 1))  # as the last step did
    if state["scaler"]:  # empty if AMP is off
        trainer.scaler.load_state_dict(state["scaler"])
    if trainer.average:
        trainer.average.model.load_state_dict(state["average"])
        trainer.average.updates = state["average_updates"]


def require_finite(trainer: Trainer) -> None:
    """Raises NonFiniteError if a tensor of `state_of` is not finite, which finite losses allow."""
    state = state_of(trainer)
    parts = [("model", state["model"]), ("average", state["average"] or {})]
    parts += [("optimizer", moments) for moments in state["optimizer"]["state"].values()]
    named = [(f"{part} {name}", value) for part, values in parts for name, value in values.items()]
    finite = torch.stack([value.isfinite().all().to(trainer.device) for _, value in named])
    bad = [name for (name, _), good in zip(named, finite.tolist()) if not good]
    if bad:
        raise NonFiniteError(f"not finite after iteration {trainer.iteration}: {first_of(bad)}")


def fingerprint(content: dict) -> str:
    """SHA-256 of names, types, shapes and bytes of all weights, averaged ones included."""
    return weights.fingerprint(
        {
            f"{part} {name}": tensor
            for part in ("model", "average")
            for name, tensor in sorted((content.get(part) or {}).items())
        }
    )


def build(
    content: Fields, builder: Builder = zoo.build_from_config
) -> tuple[nn.Module, Criterion, Postprocess]:
    """The model of a checkpoint, with averaged weights if there are both and in eval mode, its
    criterion and post-processing; raises InputError if there is no such model or tensors differ.
    """
    config = config_of(content)
    try:
        model, criterion, postprocess = builder(config)
        model.load_state_dict(content.get("average") or content["model"])
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the checkpoint's tensors do not fit the {config.backbone} model it describes: "
            "another version of the library wrote it, or it has parts of your own; "
            "build it with those parts, or start a new run from it with --pretrained"
        ) from error
    model.to(memory_format=torch.channels_last)
    # Some CPUs choose other kernels for weights that require gradients, with other last bits.
    return model.eval().requires_grad_(False), criterion, postprocess


def preset_of(
    content: Fields, image_size: int | None = None, tiles: int | None = None
) -> EvalPreset:
    """How images are shown to the model of a checkpoint: as in its training, where not given."""
    trained = content["options"]
    return EvalPreset(image_size or trained["image_size"], tiles=tiles or trained["tiles"])


def config_of(content: Fields) -> zoo.Config:
    """The config in a checkpoint; raises InputError if it describes no model of the zoo."""
    try:
        return zoo.config_from_dict(content["config"])
    except ValueError as error:
        raise InputError(f"{content.where} {error}; {FIX}") from error
