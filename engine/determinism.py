"""Reproducible numbers: random streams by seed, and deterministic kernels."""

import os
import zlib

import torch


def set_up(wanted: bool | None, device: torch.device, threads: int) -> bool:
    """Let all that follows in this process give the same bits each time, or be as fast as it can.

    Random numbers follow from the seed in any case; here it is about the order of sums. On a CPU
    the order depends on the number of threads alone, which is pinned. On CUDA, cuBLAS and cuDNN
    are held to one order, attention to its plain form, and torch takes its deterministic kernels;
    an operator that has none is warned of by name when it runs.

    Args:
        wanted: None for yes on a CPU, where it costs nothing, and no elsewhere.
        threads: of the main process.
    Returns:
        Whether the bits are to be the same.
    """
    torch.set_num_threads(threads)
    same = device.type == "cpu" if wanted is None else wanted
    # Strict where nothing of ours lacks a deterministic kernel. `scatter_reduce` has none on CUDA
    # by its name alone: with amin and amax, all we use of it, the order changes nothing.
    torch.use_deterministic_algorithms(same, warn_only=device.type != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # none is read, and it costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = same
    if device.type == "cuda":
        if same:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        # With warnings in the place of errors, the fused backwards would still add by atomics.
        torch.backends.cuda.enable_flash_sdp(not same)
        torch.backends.cuda.enable_mem_efficient_sdp(not same)
        torch.backends.cuda.enable_cudnn_sdp(not same)
    return same


def reseed(*parts: int | str) -> None:
    """Seeds torch's global generators from any parts; only drop path and dropout read them."""
    torch.manual_seed(zlib.crc32("/".join(map(str, parts)).encode()))
