"""Predicts a whole data set with a model in memory."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from data.batch import Batch
from data.dataset import CocoDataset
from data.errors import InputError
from data.loaders import eval_loader
from data.presets import WholeImage
from engine import dist, skipped
from engine.log import progress
from engine.loop import coco_results, run_inference
from engine.tiles import find
from mobileinst.deploy import fold_batchnorms
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


def tiled_predictions(
    model: nn.Module,
    postprocess: Postprocess,
    dataset: CocoDataset,
    *,
    preset: WholeImage,
    device: torch.device,
    batch_size: int,
    tiles: int,
) -> list[dict]:
    """The same with windows of each image as well, see engine/tiles.py. Images are loaded one by
    one in this process.
    """
    model = fold_batchnorms(model)
    ids = [category.id for category in dataset.categories]
    settings = {"threshold": None, "tiles": tiles, "batch_size": batch_size}
    own = range(dist.rank(), len(dataset), dist.world_size())
    found = []
    with dist.synced_errors(InputError):
        for index in progress(own, desc=dataset.name, leave=False):
            found.append([])
            try:
                image, truth = dataset.read(index)
            except InputError as error:
                dataset.leave_out(index, error)
                continue
            results = find([image], model, postprocess, preset, device, **settings)
            found[-1] += coco_results([truth.image_id], results, ids)
    detections = list(chain.from_iterable(dist.gather_interleaved(found)))
    skipped.gather(dataset.bad)
    return detections
