"""Random streams that depend on nothing but their names."""

import zlib

import torch


def mixed(*parts: int | str) -> int:
    """One 32-bit seed from any parts; neighbouring parts give unrelated seeds."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def reseed(*parts: int | str) -> None:
    """Start torch's global streams (drop path, and nothing else of ours, reads them) anew."""
    torch.manual_seed(mixed(*parts))
