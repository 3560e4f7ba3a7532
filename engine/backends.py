"""Exported files (.onnx, .pte) with the interface of a checkpoint's model."""

import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import InputError
from data.presets import CanvasPreset, WholeImage
from engine import checkpoint, files, options
from mobileinst import zoo
from mobileinst.deploy import final_postprocess
from mobileinst.set_prediction.losses import Criterion
from mobileinst.set_prediction.postprocess import Postprocess

FORMAT = 2  # of the metadata; 1 had no tiles
KEY = "mobileinst"  # of the metadata inside an ONNX file
METADATA = "model.json"
PACKAGES = {".onnx": ("onnxruntime",), ".pte": ("executorch",)}  # needed to open a file
AGAIN = "export it again with sbin/export.sh"

Run = Callable[[Tensor], tuple[Tensor, Tensor]]  # image [3,H,W] in 0..1 -> scores, masks


class Loaded(NamedTuple):
    """A checkpoint or exported file with its model; `criterion` is None for an exported file."""

    path: Path
    content: checkpoint.Fields
    model: nn.Module
    criterion: Criterion | None
    postprocess: Postprocess
    preset: WholeImage

    @property
    def title(self) -> str:
        if self.criterion is None:
            return f"exported for {self.preset.canvas[0]}x{self.preset.canvas[1]}"
        return f"iteration {self.content['iteration']}"


class Exported(nn.Module):
    """An exported model with the interface of a model: images -> scores and mask_logits."""

    def __init__(self, run: Run, pad_colour: list[float]):
        super().__init__()
        self.run, self.pad = run, torch.tensor(pad_colour)[:, None, None] / 255  # [3,1,1]

    def __deepcopy__(self, memo: dict) -> "Exported":
        return self  # it has no weights to change

    def forward(self, images: Tensor, padding: Tensor) -> dict[str, Tensor]:
        """Images [B,3,H,W] in 0..1, padding [B,H,W] -> scores [B,Q,K], mask_logits [B,Q,h,w]."""
        padded = torch.where(padding.cpu()[:, None], self.pad, images.cpu())
        scores, masks = (torch.cat(each) for each in zip(*map(self.run, padded)))
        return {"scores": scores, "mask_logits": masks}


def is_exported(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() in PACKAGES


def load(
    path: Path | None,
    builder: checkpoint.Builder = zoo.build_from_config,
    image_size: int | None = None,
    tiles: int | None = None,
) -> Loaded:
    """Opens an exported file (by its suffix) or a checkpoint, by default that of the newest run.

    Args:
        image_size, tiles: other ones than those of the training.
    Raises:
        InputError: if it cannot be used, or `image_size` is given for an exported file.
    """
    if is_exported(path):
        return open_exported(path, image_size, tiles)
    path, content = checkpoint.load_or_newest(path, options.RUNS)
    preset = checkpoint.preset_of(content, image_size, tiles)
    return Loaded(path, content, *checkpoint.build(content, builder), preset)


def open_exported(path: Path, image_size: int | None = None, tiles: int | None = None) -> Loaded:
    """An .onnx or .pte file of sbin/export.sh; raises InputError if it cannot be used."""
    if not path.is_file():
        raise InputError(f"{path} is missing; name a file of sbin/export.sh")
    require_packages(PACKAGES[path.suffix.lower()], str(path))
    text, run = (open_onnx if path.suffix.lower() == ".onnx" else open_pte)(path)
    meta = parse(text, path if path.suffix.lower() == ".onnx" else path.with_name(METADATA))
    known = [each.get("sha256") for name, each in meta["files"].items() if name.endswith(".pte")]
    if path.suffix.lower() == ".pte" and any(known) and files.sha256(path) not in known:
        raise InputError(f"{path} is not a file that {METADATA} describes; copy both, or {AGAIN}")
    size = meta["height"], meta["width"]
    if image_size is not None:
        raise InputError(
            f"{path}: its input is {size[0]}x{size[1]}, which is fixed; leave --image-size out, or "
            "export the checkpoint with another --size"
        )
    content = {
        "classes": meta["categories"],
        "config": meta["config"],
        "best": {"threshold": meta["threshold"]},
    }
    postprocess = final_postprocess(meta["config"]["max_detections"], meta["duplicate_iou"])
    model = Exported(run, meta["pad_colour"])
    fields = checkpoint.Fields(content, f"{path}:")
    preset = CanvasPreset(size, tiles=tiles or meta["tiles"])
    return Loaded(path, fields, model, None, postprocess, preset)


def require_packages(names: Sequence[str], what: str) -> None:
    """Checks that packages are installed, raises InputError."""
    if missing := [name for name in names if find_spec(name) is None]:
        wanted = "-r requirements-export.txt"
        if "executorch" in missing:  # each minor version is built for one of torch
            wanted = f"'executorch==1.{int(torch.__version__.split('.')[1]) - 9}.*'"
        raise InputError(
            f"{what} needs {' and '.join(missing)}: install with {sys.executable} -m pip install "
            f"{wanted}"
        )


def parse(text: str | None, path: Path) -> dict:
    """The metadata of an exported file; raises InputError if it has none that can be read."""
    try:
        meta = json.loads(text)
        version = meta["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: not exported by this library, or its metadata cannot be read; {AGAIN}"
        ) from None
    if version != FORMAT:
        raise InputError(
            f"{path}: has format {version} and this version of the library reads {FORMAT}; {AGAIN}"
        )
    if meta != signed(meta):
        raise InputError(
            f"{path}: its metadata were changed; options as --threshold take other values, or "
            f"{AGAIN}"
        )
    return meta


def signed(meta: dict) -> dict:
    """Metadata with the SHA-256 of all values but those of the files, which come later."""
    values = {key: value for key, value in meta.items() if key not in ("files", "sha256")}
    text = json.dumps(values, sort_keys=True)
    return meta | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def onnx_session(path: Path):
    """ONNX Runtime on the CPU, with torch's number of threads."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def open_onnx(path: Path) -> tuple[str | None, Run]:
    """The metadata of a file, and a function that runs it."""
    try:
        session = onnx_session(path)
    except Exception as error:  # of many kinds, none of which is public
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be opened by ONNX Runtime ({reason}); {AGAIN}") from None

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (image * 255).round().byte().permute(1, 2, 0)[None]  # [1,H,W,3]
        found = session.run(["scores", "masks"], {"image": np.ascontiguousarray(pixels)})
        return tuple(map(torch.from_numpy, found))

    return session.get_modelmeta().custom_metadata_map.get(KEY), run


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Suppresses warnings, log lines and stderr of exporters and runtimes, also in C++."""
    before, stderr = logging.root.manager.disable, os.dup(2)
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as nothing, redirect_stderr(nothing), warnings.catch_warnings():
            os.dup2(nothing.fileno(), 2)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logging.disable(before)


@cache
def set_executorch_threads() -> None:
    """Gives ExecuTorch torch's number of threads, once, as loaded programs keep their threads."""
    with silent_libraries():
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())


def open_pte(path: Path) -> tuple[str, Run]:
    """The same for a .pte file, whose metadata are in a file beside it."""
    beside = path.with_name(METADATA)
    if not beside.is_file():
        raise InputError(f"{path}: {METADATA} is missing beside it; copy both, or {AGAIN}")
    set_executorch_threads()
    from executorch.runtime import Runtime

    try:
        with silent_libraries():
            method = Runtime.get().load_program(path).load_method("forward")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be opened by ExecuTorch ({reason}); {AGAIN}") from None

    lock = Lock()  # a method is not thread-safe

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        with lock:
            scores, masks = method.execute([image[None].contiguous()])
            return scores.clone(), masks.clone()  # the runtime reuses their memory

    return beside.read_text(encoding="utf-8", errors="replace"), run
