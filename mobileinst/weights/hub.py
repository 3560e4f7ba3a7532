"""A folder as Hugging Face's hub has it: config.json, and the tensors beside it."""

from pathlib import Path

from torch import nn

from mobileinst.weights.files import WeightFile, open_weights
from mobileinst.weights.loading import require_match
from mobileinst.weights.reading import LoadError
from mobileinst.weights.report import shorten
from mobileinst.weights.shards import read_json

FILES = (  # the first that is there; large models are spread over files named in an index
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def hub_settings(folder: Path) -> dict:
    """What config.json says.

    Raises:
        LoadError: there is no such folder or file, or it cannot be read.
    """
    return read_json(
        folder / "config.json", "give the folder of a model as save_pretrained wrote it"
    )


def hub_weights(folder: Path) -> WeightFile:
    """The tensors beside it.

    Raises:
        LoadError: there are none, or they cannot be read.
    """
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise LoadError(
            f"{folder}: holds no {', '.join(FILES[:-1])} or {FILES[-1]}; put one beside config.json"
        )
    return open_weights(found[0])


def require_exact(file: WeightFile, model: nn.Module, num_classes: int) -> None:
    """LoadError unless the tensors of a file are those of the model that config.json describes, no
    more and no less. Nothing is copied: the model may be one of shapes alone, on the device "meta".
    """
    match, _ = require_match(file, model)
    wrong = ""
    if match.redrawn:
        wrong = (
            f"config.json lists {num_classes} classes under id2label and "
            f"{', '.join(match.redrawn)} has {file.rows_per_class(match.redrawn)} rows"
        )
    elif extra := match.unexpected:
        wrong = (
            f"{len(extra)} tensors have no place in the model that config.json describes "
            f"({shorten(extra, 3)})"
        )
    if wrong:
        raise LoadError(f"{file.path}: {wrong}; get both files of one model")
