"""One table: files that are broken, hostile or no weights -> the message of the refusal."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from mobileinst import weights, zoo
from mobileinst.backbones.topformer import topformer_small, topformer_tiny
from tests.small import SMALL

PROTOCOLS = (2, 3, 4, 5)
GRID = np.arange(24).reshape(2, 3, 4).astype("f4")


class Call:
    """Pickled as the instruction to call a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


class State(Call):
    """The same, and then the instruction to set a state on the result."""

    def __reduce__(self):
        function, state, *arguments = self.call
        return function, tuple(arguments), state


RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float32(1).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


def opcodes(code, protocol=4):
    return b"\x80" + bytes([protocol]) + code + b"."


def name(module, function):
    return b"".join(b"\x8c" + bytes([len(n)]) + n for n in (module, function)) + b"\x93"


def zip_of_images(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.jpg", b"\xff\xd8\xff" * 500)


def cut_short(path, good):
    torch.save(good, path)
    path.write_bytes(path.read_bytes()[:-5000])


def safetensors(**change):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change
    head = repr({"x": entry}).replace("'", '"').encode()
    return struct.pack("<Q", len(head)) + head + bytes(8)


KIND = "it is of another kind or cut short"
SAFELY = "not a checkpoint that can be read safely"

# Kind -> content and message. Bytes are written as they are, functions of (path) or (path, tensors
# that fit) write the file, what functions of the tensors return is saved by torch.
NOT_WEIGHTS = {
    "text": (b"epoch,AP\n1,0.2\n", "it is text; give a file of weights"),
    "web page": (b"<!DOCTYPE html>", "it is a web page, .*give"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer, the file itself"),
    "empty": (b"", "it is empty; give a file of weights"),
    "noise": (bytes(range(256)), KIND),
    "zip": (zip_of_images, "a zip archive that was cut short or holds something else; give"),
    "cut short": (cut_short, "a zip archive that was cut short or holds something else; give"),
    "folder": (lambda path: path.mkdir(), "is a folder; give a file of weights"),
    "missing": (lambda path: None, "no such file; give a file of weights"),
    "module": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        r"asks to run torch\.nn\.modules\.linear\.Linear, which is never done; give",
    ),
}
PICKLES = {
    "a name behind a dot": (
        opcodes(name(b"numpy.core.multiarray", b"_reconstruct.__globals__")),
        r"asks to run numpy\.core\.multiarray\._reconstruct\.__globals__, which",
    ),
    "a name with a line break": (opcodes(name(b"os\n\x1b[2J", b"system")), r"run os\\n\\x1b"),
    "an instance": (opcodes(b"(ios\nsystem\n"), r"asks to run os\.system, which"),
    "half a pickle": (pickle.dumps({"x": GRID}, 4)[:60], KIND),
    "a set": (pickle.dumps({"x": {1, 2}}, 2), "asks to run __builtin__.set"),
    "strings": (pickle.dumps({"x": np.array(["a"])}, 4), "arrays of something else than numbers"),
    "objects": (pickle.dumps({"x": np.array([{}])}, 4), "arrays of something else than numbers"),
}
SAFETENSORS = {
    "table: shape": (safetensors(shape=[4, 1]), SAFELY),
    "table: negative shape": (safetensors(shape=[-1, -2]), SAFELY),
    "table: dtype": (safetensors(dtype="F9"), SAFELY),
    "table: empty": (struct.pack("<Q", 2) + b"{}", "holds no named tensors"),
}
NAN = "trans.transformer_blocks.1.mlp.dwconv.weight"
OTHER_WEIGHTS = {
    "list": (lambda good: list(good.values()), "holds a list, no named"),
    "tensor": (lambda good: torch.ones(3), "holds a Tensor, no named"),
    "prefix": (
        lambda good: {f"encoder.{n}": v for n, v in good.items()},
        "names that are not known here .*0 of 263 tensors fit, .*without the 'encoder.'",
    ),
    "another size": (
        lambda good: topformer_small().state_dict(),
        "TopFormer-S, the model is TopFormer-T: 25 of 263 .* 238 have another shape "
        r"\(tpm\.layer2\.conv\.4\.c\.weight is 24x64x1x1 there, 16x64x1x1 here\); give a file of",
    ),
    "another model": (
        lambda good: mobilenet_v2(weights=None).state_dict(),
        "MobileNetV2, the model is TopFormer-T: 0 of 263 .* choose the model that this file",
    ),
    "unknown model": (
        lambda good: resnet18(weights=None).state_dict(),
        "names that are not known here .conv1.weight, .*the model is TopFormer-T: 0 of 263",
    ),
    "one tensor missing": (
        lambda good: {n: v for n, v in good.items() if n != list(good)[9]},
        "TopFormer-T, the model too: 262 of 263 .* 1 are missing .*get the whole file",
    ),
    "single numbers": (
        lambda good: {n: torch.tensor(1.0) for n in good},
        "TopFormer of another size .* 0 of 263 .* is one number there, 16x3x3x3 here",
    ),
    "quantised": (
        lambda good: {n: v.to(torch.int8) for n, v in good.items()},
        "263 have another shape .*3x3x3 int8 there",
    ),
    "not finite": (
        lambda good: good | {NAN: torch.full_like(good[NAN], torch.nan)},
        r"1 of its tensors hold values that are not finite \(trans.*dwconv.weight\); get the file",
    ),
}
PARTS_FIT = ("another size", "one tensor missing")  # with --allow-partial
WRONG = NOT_WEIGHTS | PICKLES | SAFETENSORS | OTHER_WEIGHTS


@pytest.fixture(scope="module")
def tensors():
    state = topformer_tiny().state_dict()
    return {name: torch.rand(v.shape) + 0.1 if v.ndim else v + 7 for name, v in state.items()}


@pytest.fixture(scope="module")
def model():
    """A model that no test may change."""
    return zoo.build("mobileinst_topformer_tiny", 3, **SMALL["mobileinst_topformer_tiny"])[0]


def write(path, content, tensors):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.__code__.co_varnames[0] == "good":
        torch.save(content(tensors), path)
    else:
        content(path, *[tensors][: content.__code__.co_argcount - 1])


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, model, tensors, kind):
    content, message = WRONG[kind]
    path = tmp_path / "file.pth"
    write(path, content, tensors)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for allow_partial in [False] if kind in PARTS_FIT else [False, True]:
        tracemalloc.start()
        with pytest.raises(weights.LoadError, match=message) as error:
            weights.load(model, path, allow_partial=allow_partial)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        text = str(error.value)
        assert text.startswith(f"{path}: ") and "\n" not in text and "\x1b" not in text
        assert ". " not in text and not text.endswith(".") and len(text) < 500
        assert peak < 10_000_000
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


# Calls of functions, hidden in pickles


def places(call):
    """Contents in which a call is hidden."""
    full = (1, (1,), np.dtype("f4"), False, b"\0\0\0\0")
    return {
        "at the top": call,
        "in a dict": {"model": {"x": call}},
        "in a list in a tuple": {"model": ([[call]],)},
        "beside the weights": {"model": {"x": GRID}, "optimizer": call},
        "as objects of an array": {"x": np.array([call, None], dtype=object)},
        "as a single object": {"x": Call(SCALAR, np.dtype("O"), call)},
        "as a shape": {"x": State(RECONSTRUCT, (1, call, *full[2:]), np.ndarray, (0,), b"b")},
        "as values": {"x": State(RECONSTRUCT, (*full[:4], call), np.ndarray, (0,), b"b")},
        "as a dtype": {"x": Call(FROM_BUFFER, b"1234", call, (1,), "C")},
        "as entries": OrderedDict([("x", call)]),
        "as an argument": {"x": Call(OrderedDict, [("x", call)])},
    }


CALLS = {
    "a command": lambda mark: Call(os.system, f"touch {mark}"),
    "a folder": lambda mark: Call(os.mkdir, str(mark)),
    "numpy's loader": lambda mark: Call(np.load, str(mark), None, True),
    "an attribute": lambda mark: Call(getattr, np.ndarray, "tofile"),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_call_is_made_wherever_it_hides(tmp_path, call):
    mark, path = tmp_path / "was_here", tmp_path / "weights.pkl"
    for protocol in (0, 1, *PROTOCOLS):
        for place, content in places(CALLS[call](mark)).items():
            path.write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(weights.LoadError, match=r"weights\.pkl: .*; give a file") as error:
                weights.read(path)
            assert not mark.exists() and "\n" not in str(error.value), place
    path.write_bytes(pickle.dumps(CALLS[call](mark)))
    with pytest.raises(weights.LoadError, match=r"asks to run [\w.]+, which is never done; "):
        weights.read(path)
    if call in ("a command", "a folder"):
        pickle.loads(path.read_bytes())  # what the file would have done
        assert mark.exists()


def test_calls_in_a_file_of_torch_are_not_made(tmp_path, model, tensors):
    mark, path = tmp_path / "was_here", tmp_path / "evil.pth"
    torch.save({"state_dict": tensors, "args": Call(os.mkdir, str(mark))}, path)
    with pytest.raises(weights.LoadError, match=r"evil\.pth: .* asks to run \w+\.mkdir"):
        weights.load(model, path)
    assert not mark.exists()
