"""Asynchronous copies to a device, and autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the CPU to a device; on CUDA asynchronously, from pinned memory."""
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def without_autocast(device: str) -> AbstractContextManager:
    """A context without autocast."""
    # The meta device knows no autocast. Where it is off, an exported graph stays in one piece.
    known = torch.amp.is_autocast_available(device)
    on = known and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()
