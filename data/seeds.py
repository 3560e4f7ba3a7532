"""Random generators seeded from several numbers."""

from __future__ import annotations

import torch

MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """Whole numbers -> one 63-bit seed; the same on every machine and in every process.

    Each number goes through the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), so that
    neighbouring seeds, epochs and indices give unrelated generators.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded with `mix(*numbers)`."""
    return torch.Generator().manual_seed(mix(*numbers))
