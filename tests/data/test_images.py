"""data/images.py: each deep image must look like the same ramp in grey of 16 bits."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.images import read_rgb, split_16bit_tile, upright_size

RAMP = np.linspace(7, 4095, 1600).reshape(40, 40).round().astype(np.uint16)
COLOURS = np.stack([RAMP, RAMP.T, RAMP[::-1]], -1)
STRETCHED = ((COLOURS - 7.0) * 255 / 4088).round().astype(np.uint8)


def write_png(path, values, colour_type):
    """A PNG of 16 bits, written by hand."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_tiff(path, values, order, *, compressed=False, planar=False, extra=None, turned=1):
    """A TIFF of 16 bits, written by hand, in strips of 7 rows."""
    planes = np.moveaxis(values, -1, 0) if planar else [values]
    parts = [plane[row : row + 7] for plane in planes for row in range(0, len(plane), 7)]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    places = 8 + np.cumsum([0, *map(len, strips)])
    channels, (height, width) = values.shape[2], values.shape[:2]
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [8 if compressed else 1]}
    tags |= {262: [2], 273: list(places[:-1]), 274: [turned], 277: [channels], 278: [7]}
    tags |= {279: [len(strip) for strip in strips], 284: [2 if planar else 1]}
    tags |= {} if extra is None else {338: [extra]}
    end = places[-1] + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag, numbers in tags.items():  # all of them as 32-bit numbers, but those of bits
        kind, size = (3, "H") if tag in (258, 259, 262, 274, 277, 284, 338) else (4, "I")
        data = struct.pack(f"{order}{len(numbers)}{size}", *map(int, numbers))
        if len(data) > 4:
            data, more = struct.pack(f"{order}I", end + len(more)), more + data
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, places[-1])
    count = struct.pack(f"{order}H", len(tags))
    path.write_bytes(start + b"".join(strips) + count + entries + bytes(4) + more)


def test_the_ramp_in_grey_and_in_colours_looks_alike(tmp_path):
    write_png(tmp_path / "grey.png", RAMP, 0)
    write_png(tmp_path / "alpha.png", np.stack([RAMP, RAMP * 0 + 60000], -1), 4)
    write_png(tmp_path / "colour.png", np.stack([RAMP] * 3, -1), 2)
    write_tiff(tmp_path / "colour.tif", np.stack([RAMP] * 3, -1), "<")
    one, *others = (np.asarray(read_rgb(path)) for path in sorted(tmp_path.iterdir()))
    wanted = ((RAMP - 7.0) * 255 / 4088).round()
    assert (one == wanted[..., None]).all() and len(others) == 3
    assert all((each == one).all() for each in others)


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_png_of_16_bit_colours(tmp_path, kind):
    alpha = np.full((40, 40, len(kind) - 3), 65535, np.uint16)
    write_png(tmp_path / "a.png", np.dstack([COLOURS, alpha]), 2 if kind == "RGB" else 6)
    assert (np.asarray(read_rgb(tmp_path / "a.png")) == STRETCHED).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planar, extra", [(False, None), (True, None), (False, 1), (False, 2)])
@pytest.mark.parametrize("turned", [1, 6])
def test_tiff_of_16_bit_colours(tmp_path, order, compressed, planar, extra, turned):
    path, values, alpha = tmp_path / "a.tif", COLOURS, np.full((40, 40, 1), 65535, np.uint16)
    values = values if extra is None else np.dstack([values, alpha])
    how = {"compressed": compressed, "planar": planar, "extra": extra, "turned": turned}
    write_tiff(path, values[:30], order, **how)
    wanted = ((COLOURS[:30] - 7.0) * 255 / (COLOURS[:30].max() - 7)).round()
    if planar and compressed:
        wanted = COLOURS[:30] >> 8
    wanted = wanted if turned == 1 else np.rot90(wanted, -1)
    assert (np.asarray(read_rgb(path)) == wanted).all()
    assert upright_size(path) == wanted.shape[:2]


@pytest.mark.parametrize("most", [4095, 65535])
def test_ppm_of_16_bit_colours(tmp_path, most):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 40 40 %d\n" % most + COLOURS.astype(">u2").tobytes())
    assert (np.asarray(read_rgb(path)) == STRETCHED).all()


def test_tiles_as_pillow_had_them_before_11(tmp_path):
    """Plain tuples."""
    write_png(tmp_path / "a.png", COLOURS, 2)
    with Image.open(tmp_path / "a.png") as file:
        high, low = split_16bit_tile(file, tuple(file.tile[0]))
        assert type(high) is type(low) is tuple and (high, low) == split_16bit_tile(
            file, file.tile[0]
        )
