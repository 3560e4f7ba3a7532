"""Reproducible numbers: random streams by seed, and deterministic kernels."""

import os

import torch

from mobileinst.layers.seeds import named_seed


def set_up(wanted: bool | None, device: torch.device, threads: int) -> bool:
    """Makes this process bitwise reproducible, or as fast as possible.

    This is about the order of sums; random numbers follow from the seed in any case. On a CPU the
    order depends on `threads` only; CUDA needs deterministic kernels and the plain attention.

    Args:
        wanted: None: on a CPU, where it costs nothing.
    Returns:
        Whether results are reproducible.
    """
    torch.set_num_threads(threads)
    same = device.type == "cpu" if wanted is None else wanted
    # On CUDA only a warning: `scatter_reduce` counts as nondeterministic there, although amin and
    # amax, all we use of it, do not depend on the order.
    torch.use_deterministic_algorithms(same, warn_only=device.type != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # none is read, and it costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = same
    if device.type == "cuda":
        if same:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        # warn_only leaves the fused backwards on, which add by atomics.
        torch.backends.cuda.enable_flash_sdp(not same)
        torch.backends.cuda.enable_mem_efficient_sdp(not same)
        torch.backends.cuda.enable_cudnn_sdp(not same)
    return same


def reseed(*parts: int | str) -> None:
    """Seeds torch's global generators from any parts; only drop path and dropout read them."""
    torch.manual_seed(named_seed(*parts))
