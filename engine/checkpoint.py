"""Checkpoints: plain tensors and plain types, written atomically, read without running code."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from data.errors import InputError
from engine import runs
from engine.checkpoint_fields import MEND, Fields, checked
from mobileinst import weights, zoo

# (config, seed=0) → model, criterion, post-processing; the zoo's, or one that puts in other parts.
Builder = Callable[..., tuple[nn.Module, nn.Module, Callable]]

FORMAT = weights.FORMAT
FALLBACK_THRESHOLD = 0.3  # our choice, for weights with which no score is yet better than another


def save(path: Path, content: dict) -> None:
    """Write `content` to `path`: into a temporary file, flushed, renamed. Never half a file.

    Raises:
        FailedRun: the file system does not allow it; the file before is kept.
    """
    with runs.replacing_in_run(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT} | {key: plain(value) for key, value in content.items()}, file)


def plain(value: object) -> object:
    """A value as it may be saved: what was loaded is plain again."""
    return dict(value) if isinstance(value, Fields) else value


def load(path: Path) -> Fields:
    """Read a checkpoint of ours onto the CPU, and check what it holds.

    Raises:
        InputError: the file is missing, is no checkpoint, is not one of ours, or has values that
            none of ours can have. Also when something is asked of the content that is missing.
    """
    try:
        content = weights.read(path, MEND)
    except weights.LoadError as error:
        raise InputError(str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this library; {MEND}")
    return checked(Path(path), content)


def score_threshold(best: dict, asked: float | None = None) -> tuple[float, str]:
    """The score above which predictions are shown, and in words where it comes from.

    Args:
        best: what a checkpoint holds under this name; its `threshold`, the one with the best F1,
            is None as long as no prediction covers an object.
        asked: what the user asked for, if anything.
    """
    if asked is not None:
        return asked, "as asked for"
    if best["threshold"] is None:
        return FALLBACK_THRESHOLD, "a stopgap: nothing was found at the last evaluation"
    return best["threshold"], "the best F1 at the evaluation"


def describe_model(config, classes: list) -> dict:
    """What a checkpoint says about its network: the builder's keywords and the class map."""
    return {
        "config": zoo.config_to_dict(config),
        "classes": [{"index": c.index, "id": c.id, "name": c.name} for c in classes],
    }


def fingerprint(content: dict) -> str:
    """SHA-256 of the names, types, shapes and bytes of all weights, averaged ones included.

    Unlike that of the file it says nothing of options, dates and seconds.
    """
    digest = hashlib.sha256()
    for part in ("model", "average"):
        for name, tensor in sorted((content[part] or {}).items()):
            digest.update(f"{part} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def build(
    content: dict, builder: Builder = zoo.build_from_config
) -> tuple[nn.Module, object, object]:
    """The model (with its weights), criterion and post-processing a checkpoint describes.

    The averaged weights are taken where the run kept an average.

    Raises:
        InputError: there is no such model, or its tensors are others.
    """
    config = config_of(content)
    tensors = content["average"] or content["model"]
    try:
        with torch.device("meta"):  # without memory: the sizes may be absurd
            require_same_tensors(builder(config)[0], tensors)
        model, criterion, postprocess = builder(config)
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the checkpoint's tensors do not fit the {config.backbone} model it describes: "
            "another version of the library wrote it, or it has parts of one's own; "
            "build it with those parts, or start a new run from it with --pretrained"
        ) from error
    model.to(memory_format=torch.channels_last)
    return model.eval(), criterion, postprocess


def config_of(content: Fields) -> zoo.Config:
    """The config in a checkpoint.

    Raises:
        InputError: it describes no model of ours, or not one for its classes and tensors.
    """
    try:
        config = zoo.config_from_dict(content["config"])
    except ValueError as error:
        raise InputError(f"{content.where} {error}; {MEND}") from error
    layers = [getattr(config, name, 0) for name in ("layers", "encoder_layers")]
    layers += getattr(config, "depths", ())
    if sum(layers) > len(content["model"]):
        raise InputError(f"{content.where} describes more layers than it has tensors; {MEND}")
    if config.num_classes != len(content["classes"]):
        raise InputError(
            f"{content.where} describes a model of {config.num_classes} classes and lists "
            f"{len(content['classes'])}; {MEND}"
        )
    return config


def require_same_tensors(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ValueError unless names and shapes are those of the model."""
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        raise ValueError("other names or shapes")
