"""Seeds by name: independent random streams for parameters, points and steps."""

import zlib


def named_seed(*parts: int | str) -> int:
    """A 32-bit seed that depends on all parts."""
    return zlib.crc32("/".join(map(str, parts)).encode())
