"""A folder as Hugging Face's hub has it: config.json, and the tensors beside it."""

import json
from pathlib import Path

from mobileinst.weights.files import LoadError, WeightFile, open_weights

FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there


def open_hub(folder: Path) -> tuple[dict, WeightFile]:
    """What config.json says, and the file of weights.

    Raises:
        LoadError: there is no such folder, or one of the two is missing or cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(
            f"{path}: {error.strerror}; give the folder of a model as save_pretrained wrote it"
        ) from error
    except ValueError as error:
        raise LoadError(f"{path}: is no json ({error}); get the file again") from error
    if not isinstance(config, dict):
        raise LoadError(f"{path}: holds no settings; give the config.json of a model")
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise LoadError(
            f"{folder}: holds neither {' nor '.join(FILES)}; put one beside config.json"
        )
    return config, open_weights(found[0])
