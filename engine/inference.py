"""Predicts a whole data set with a model in memory."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from data.batch import Batch
from data.dataset import CocoDataset
from data.loaders import eval_loader
from data.presets import WholeImage
from engine import dist, skipped
from engine.loop import run_inference
from mobileinst.set_prediction.postprocess import Postprocess


def predictions(
    model: nn.Module,
    postprocess: Postprocess,
    dataset: CocoDataset,
    *,
    preset: WholeImage,
    workers: int,
    device: torch.device,
    batch_size: int = 8,
    threshold: float | None = None,
    callback: Callable[[dict, Batch], None] | None = None,
) -> list[dict]:
    """Predicts a whole data set; see `run_inference`."""
    loader = eval_loader(
        dataset,
        replace(preset, targets=callback is not None),
        batch_size=batch_size,
        workers=workers,
        rank=dist.rank(),
        world_size=dist.world_size(),
    )
    ids = [category.id for category in dataset.categories]
    settings = {"threshold": threshold, "callback": callback, "title": dataset.name}
    detections = run_inference(model, postprocess, loader, device, ids, **settings)
    skipped.gather(dataset.bad)
    return detections
