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
    """Predicts a whole data set, with windows if the preset has `tiles`; see `run_inference`. The
    callback sees whole images alone.
    """
    ids = [category.id for category in dataset.categories]
    if callback or preset.tiles == 1:
        loader = eval_loader(
            dataset,
            replace(preset, targets=callback is not None),
            batch_size=batch_size,
            workers=workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
        )
        settings = {"threshold": threshold, "callback": callback, "title": dataset.name}
        detections = run_inference(model, postprocess, loader, device, ids, **settings)
    if preset.tiles > 1:
        network = fold_batchnorms(model), postprocess, preset, device, threshold, batch_size
        detections = with_windows(network, dataset, ids)
    skipped.gather(dataset.bad)
    return detections


def with_windows(network: tuple, dataset: CocoDataset, category_ids: list[int]) -> list[dict]:
    """The same for images and windows of them; images are loaded one by one in this process.

    network: model, postprocess, preset, device, threshold and batch size of `tiles.find`.
    """
    found = []
    with dist.synced_errors(InputError):
        own = range(dist.rank(), len(dataset), dist.world_size())
        for index in progress(own, desc=dataset.name, leave=False):
            found.append([])
            try:
                image, truth = dataset.read(index)
            except InputError as error:
                dataset.leave_out(index, error)
                continue
            found[-1] += coco_results([truth.image_id], find([image], *network), category_ids)
    return list(chain.from_iterable(dist.gather_interleaved(found)))
