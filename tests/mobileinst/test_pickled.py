"""Plain pickles: numpy's arrays come out as they went in, and nothing else is ever done."""

import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mobileinst import weights

PROTOCOLS = (2, 3, 4, 5)
GRID = np.arange(24).reshape(2, 3, 4)


@pytest.fixture
def write(tmp_path):
    """A function: a file of these bytes, or of what pickling this gives."""

    def write(content, protocol=4, name="weights.pkl"):
        data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


# What numpy writes


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
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_come_back(write, kind, protocol):
    array = ARRAYS[kind]
    tensor = weights.read(write({"x": array}, protocol))["x"]
    native = np.array(array).astype(array.dtype.newbyteorder("="))
    assert tensor.dtype == torch.from_numpy(native).dtype
    assert tuple(tensor.shape) == array.shape and np.array_equal(tensor.numpy(), native)
    tensor.fill_(1)  # memory of its own


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_authors_container_and_what_stands_beside_it(write, protocol):
    state = OrderedDict(a=ARRAYS["singles"], b=ARRAYS["longs"])
    state._metadata = {"": {"version": 2}}
    content = {"model": state, "__author__": "somebody", "matching_heuristics": True}
    found = weights.read(write(content, protocol))
    assert found["__author__"] == "somebody" and found["matching_heuristics"] is True
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
    """Bytes are text of one byte a letter there; taken from the documented form of the orders."""
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


# What nothing but an attack or an accident writes


class Order:
    """Pickled as the order to call something."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


class State(Order):
    """The same, and then the order to set a state on what came of it."""

    def __reduce__(self):
        function, state, *arguments = self.call
        return function, tuple(arguments), state


RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float32(1).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


def hidden(order):
    """Places in which an order may hide."""
    full = (1, (1,), np.dtype("f4"), False, b"\0\0\0\0")
    return {
        "at the top": order,
        "in a dict": {"model": {"x": order}},
        "in a list in a tuple": {"model": ([[order]],)},
        "beside the weights": {"model": {"x": GRID.astype("f4")}, "optimizer": order},
        "as objects of an array": {"x": np.array([order, None], dtype=object)},
        "as a single object": {"x": Order(SCALAR, np.dtype("O"), order)},
        "as a shape": {"x": State(RECONSTRUCT, (1, order, *full[2:]), np.ndarray, (0,), b"b")},
        "as values": {"x": State(RECONSTRUCT, (*full[:4], order), np.ndarray, (0,), b"b")},
        "as a dtype": {"x": Order(FROM_BUFFER, b"1234", order, (1,), "C")},
        "as entries": OrderedDict([("x", order)]),
        "as what is called": {"x": Order(OrderedDict, [("x", order)])},
    }


CALLS = {
    "a command": lambda mark: Order(os.system, f"touch {mark}"),
    "a folder": lambda mark: Order(os.mkdir, str(mark)),
    "eval": lambda mark: Order(eval, f"__import__('os').mkdir({str(mark)!r})"),
    "exec": lambda mark: Order(exec, f"open({str(mark)!r}, 'w')"),
    "a file": lambda mark: Order(open, str(mark), "w"),
    "numpy's loader": lambda mark: Order(np.load, str(mark), None, True),
    "numpy's writer": lambda mark: Order(np.save, str(mark), np.ones(1)),
    "torch's loader": lambda mark: Order(torch.load, str(mark)),
    "an attribute": lambda mark: Order(getattr, np.ndarray, "tofile"),
}


@pytest.mark.parametrize("protocol", (0, 1, *PROTOCOLS))
@pytest.mark.parametrize("call", CALLS)
def test_no_order_is_followed_wherever_it_hides(write, tmp_path, call, protocol):
    mark = tmp_path / "was_here"
    for place, content in hidden(CALLS[call](mark)).items():
        path = write(content, protocol)
        with pytest.raises(weights.LoadError, match=r"weights\.pkl: .*") as error:
            weights.read(path)
        said = str(error.value)
        assert not mark.exists() and "\n" not in said and "give a file" in said, place
    if protocol >= 2:
        path = write(CALLS[call](mark), protocol)
        with pytest.raises(weights.LoadError, match=r"asks to run [\w.]+, which is never done; "):
            weights.read(path)


def test_the_orders_are_as_hostile_as_they_claim(write, tmp_path):
    for number, call in enumerate(("a command", "a folder", "eval", "exec", "a file")):
        mark = tmp_path / f"mark{number}"
        pickle.loads(pickle.dumps(CALLS[call](mark)))
        assert mark.exists()


def stack_global(module, name):
    return b"".join(b"\x8c" + bytes([len(n)]) + n for n in (module, name)) + b"\x93"


ARRAY = stack_global(b"numpy.core.multiarray", b"_reconstruct")
CODEC = stack_global(b"_codecs", b"encode")
CODES = {
    "a name behind a dot": (
        stack_global(b"numpy.core.multiarray", b"_reconstruct.__globals__") + b".",
        r"asks to run numpy\.core\.multiarray\._reconstruct\.__globals__, which",
    ),
    "a name with a line break": (stack_global(b"os\n\x1b[2J", b"system") + b".", r"run os\\n\\x1b"),
    "an instance": (b"(ios\nsystem\n.", r"asks to run os\.system, which"),
    "an instance of a class": (b"(cos\nsystem\no.", r"asks to run os\.system, which"),
    "a new object": (ARRAY + b")\x81.", "another kind or cut short"),
    "an attribute set": (ARRAY + b"}\x8c\x01aK\x01sb.", "asks to change what it may only call"),
    "a slot set": (CODEC + b"N}\x8c\x04makeK\x01s\x86b.", "asks to change what it may only call"),
    "another encoding": (CODEC + b"\x8c\x01x\x8c\x03zip\x86R.", "another encoding than latin1"),
    "a persistent id": (b"K\x01Q.", "refers to things that are kept outside"),
    "a persistent name": (b"P1\n.", "refers to things that are kept outside"),
    "a buffer outside": (b"\x97.", "refers to things that are kept outside"),
    "an extension": (b"\x82\x01.", "asks for an extension"),
    "an array called": (stack_global(b"numpy", b"ndarray") + b"K\x03\x85R.", "in an unusual way"),
    "an array without values": (b"}\x8c\x01x" + ARRAY + b"NNN\x87Rs.", "array without values"),
    "long bytes": (b"\x8e" + struct.pack("<Q", 10**11) + b"abc.", "another kind or cut short"),
    "a long bytearray": (b"\x96" + struct.pack("<Q", 10**11) + b"abc.", "another kind or cut"),
    "a long text": (b"\x8d" + struct.pack("<Q", 10**11) + b"abc.", "another kind or cut short"),
    "a long frame": (b"\x95" + struct.pack("<Q", 10**11) + b"abc.", "another kind or cut short"),
    "a high count": (b"K\x01r" + struct.pack("<I", 2**32 - 1) + b".", "it counts to 4294967295"),
    "no end": (b"}", "another kind or cut short"),
    "nothing on the stack": (b".", "another kind or cut short"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", CODES)
def test_hostile_codes_are_refused_in_one_sentence(write, kind, protocol):
    code, message = CODES[kind]
    path = write(b"\x80" + bytes([protocol]) + code)
    tracemalloc.start()
    with pytest.raises(weights.LoadError, match=message) as error:
        weights.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
    assert peak < 2_000_000


def state(shape=(3,), dtype=None, data=bytes(12), version=1, fortran=False):
    return version, shape, np.dtype("f4") if dtype is None else dtype, fortran, data


BROKEN = {
    "too large": (state((10**9, 100)), r"array of \(1000000000, 100\) f4 and 12 bytes"),
    "far too large": (state((2**40, 2**40)), r"array of \(1099511627776, .* and 12 bytes"),
    "too small": (state((2,)), r"an array of \(2,\) f4 and 12 bytes for its values"),
    "negative": (state((-3,)), "not made of a shape, a dtype and bytes"),
    "two negatives": (state((-1, -3)), "not made of a shape, a dtype and bytes"),
    "beyond numbers": (state((0, 2**70)), "not made of a shape"),
    "fractions": (state((3.0,)), "not made of a shape"),
    "yes": (state((True, 3)), "not made of a shape"),
    "many dimensions": (state((1,) * 40 + (3,)), "not made of a shape"),
    "no shape": (state(3), "not made of a shape"),
    "no bytes": (state(data=[1.0, 2.0, 3.0]), "not made of a shape"),
    "no dtype": (state(dtype="f4"), "not made of a shape"),
    "text": (state(data="€" * 12), "another kind or cut short"),
    "objects": (state(dtype=np.dtype("O")), "holds arrays of 'O8', and weights are numbers"),
    "records": (state(dtype=np.dtype([("a", "f4")])), "holds arrays of 'V4', and weights"),
    "nested": (state(dtype=np.dtype(("f4", (2,)))), "holds arrays of 'V8', and weights"),
    "strings": (state(dtype=np.dtype("S4")), "holds arrays of 'S4', and weights are numbers"),
    "letters": (state(dtype=np.dtype("U1")), "holds arrays of 'U1', and weights are numbers"),
    "dates": (state(dtype=np.dtype("M8[s]")), "holds arrays of 'M8', and weights are numbers"),
    "complex": (state(dtype=np.dtype("c8")), "holds arrays of 'c8', and weights are numbers"),
    "short": ((1, (3,)), "another kind or cut short"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_arrays_that_are_none_are_refused(write, kind):
    values, message = BROKEN[kind]
    path = write({"model": {"x": State(RECONSTRUCT, values, np.ndarray, (0,), b"b")}})
    tracemalloc.start()
    with pytest.raises(weights.LoadError, match=message):
        weights.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_records_under_the_name_of_numbers(write):
    names = ("a", "b")
    fields = {"a": (np.dtype("f2"), 0), "b": (np.dtype("f2"), 2)}
    dtype = State(np.dtype, (3, "|", None, names, fields, 4, 1, 0), "f4", False, True)
    path = write({"x": State(RECONSTRUCT, state(dtype=dtype), np.ndarray, (0,), b"b")})
    with pytest.raises(weights.LoadError, match="holds arrays of records"):
        weights.read(path)


def test_buffers_that_are_kept_outside(write):
    buffers = []
    data = pickle.dumps({"x": GRID.astype("f4")}, 5, buffer_callback=buffers.append)
    assert buffers
    with pytest.raises(weights.LoadError, match="things that are kept outside of it"):
        weights.read(write(data))


def test_other_classes_are_refused(write):
    for value in (np.ma.masked_array([1.0]), np.random.default_rng(0), torch.ones(1), {1, 2}):
        with pytest.raises(weights.LoadError, match="weights.pkl: not a checkpoint"):
            weights.read(write({"x": value}, 2))


def test_a_pickle_that_was_cut_short(write):
    data = pickle.dumps({"model": {"x": GRID.astype("f4")}}, 4)
    for length in (2, 3, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(weights.LoadError, match="it is of another kind or cut short"):
            weights.read(write(data[:length]))


def test_reading_leaves_nothing_behind(write):
    """What one file sets is not there for the next."""
    with pytest.raises(weights.LoadError):
        weights.read(write(b"\x80\x04" + CODES["a slot set"][0]))
    assert weights.read(write({"x": GRID.astype("f4")}, 2))["x"].sum() == 276
