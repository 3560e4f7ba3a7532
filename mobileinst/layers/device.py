"""Copies that do not make the CPU wait for the device, and precision on it."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the CPU to a device; on CUDA asynchronously, from pinned memory."""
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def without_autocast(device: str) -> torch.autocast:
    """A context in which a device computes in the types that tensors have."""
    known = torch.amp.is_autocast_available(device)  # not on the meta device
    return torch.autocast(device if known else "cpu", enabled=False)
