"""Order of images and batches: a function of (seed, step), independent of what ran before.

The images form one endless stream: a permutation of the set for each epoch, drawn from (seed,
epoch). Global step s reads the next batch_size x accumulate x world_size images of it on one canvas
drawn from (seed, step); each rank and micro-step reads its slice. So starting at any step, on any
number of ranks and with any number of workers, gives the same batches. Where images fill different
canvases best, images of a similar shape share a step, on a canvas that they fill well.

With `skip_bad`, an unreadable image is replaced in a training batch by the next readable one of the
set, with the same random numbers (our choice: it keeps the size of every batch and depends on
(seed, step) and the files only). Evaluation leaves it out.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data import seeds
from data.batch import PackedBatch, Sample, collate
from data.dataset import CocoDataset
from data.errors import BadRecord, InputError
from data.presets import EvalPreset, Size, TrainPreset, paste_objects

# Purposes of random numbers: independent streams from one seed.
ORDER, CANVAS, SAMPLE, PASTE, STEPS = 1, 2, 3, 4, 5

SIMILAR = 16  # steps whose images are sorted by the canvas that they fill best
FILLED = 0.9  # a canvas may be drawn if it is filled so well, relative to the best


class Key(NamedTuple):
    """One image of one batch."""

    index: int
    epoch: int
    canvas: Size


class Loaded(NamedTuple):
    """What a worker returns: None if all images were left out; errors as values."""

    item: Sample | PackedBatch | InputError | None
    bad: list[BadRecord]


class Batches(DataLoader):
    """Packed batches, or results of another `collate`. Raises InputErrors of the workers, and notes
    images that were left out in the set's `bad`.
    """

    def __init__(
        self,
        samples: Samples,
        sampler: Iterable[list[Key]],
        workers: int,
        collate: Callable[[list], Any] = collate,
    ) -> None:
        super().__init__(
            samples,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=functools.partial(collate_loaded, collate=collate),
            generator=torch.Generator(),  # else it would draw from the generator of the training
            worker_init_fn=ignore_signals,
            multiprocessing_context=worker_context(workers),
        )

    def __iter__(self) -> Iterator[PackedBatch]:
        for item, bad in super().__iter__():
            self.dataset.images.bad.add(bad)
            if isinstance(item, InputError):
                raise item
            if item is not None:
                yield item

    def check_worker_number_rationality(self) -> None:
        """More workers than cores are the user's choice: no warning."""


def train_canvases(image_size: int) -> list[Size]:
    """A landscape, a portrait and a square canvas, sides multiples of 64.

    Our choice: the first two are what evaluation pads its largest images to, so that positions mean
    the same there; the square has about their area, so a square image is larger than in evaluation.
    """
    preset = EvalPreset(image_size)
    short, long = preset.padded_size(image_size, math.ceil(preset.max_ratio * image_size))
    side = max(64, round(math.sqrt(short * long) / 64) * 64)
    return list(dict.fromkeys([(short, long), (long, short), (side, side)]))


def filled(canvases: Sequence[Size], ratios: Sequence[float]) -> np.ndarray:
    """The part of each canvas that an image of each width / height covers at most: [C,N]."""
    shapes = np.array([[width / height] for height, width in canvases])  # [C,1]
    return np.minimum(shapes / ratios, ratios / shapes)


def covering_canvas(dataset: CocoDataset, preset: EvalPreset) -> Size:
    """The smallest canvas that holds every image of the set as evaluation sees it."""
    sizes = [preset.padded_size(record.height, record.width) for record in dataset.images]
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def train_loader(
    dataset: CocoDataset,
    preset: TrainPreset | EvalPreset,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    start_step: int = 0,
    stop_step: int,
    canvases: Sequence[Size],
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """Micro-batches of the steps start_step .. stop_step - 1, `accumulate` for each step."""
    steps = range(start_step, stop_step)
    ratios = [record.width / record.height for record in dataset.images]
    sampler = TrainSampler(ratios, batch_size, accumulate, seed, steps, canvases, rank, world_size)
    return Batches(Samples(dataset, preset, seed), sampler, workers)


def eval_loader(
    dataset: CocoDataset,
    preset: EvalPreset,
    *,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """Every image (or those of `indices`) once; each batch holds one padded size only.

    Sizes come in the order of their first image, images within a size in the order given. Each
    rank reads every `world_size`-th of the batches that a single one would read.
    """
    groups: dict[Size, list[Key]] = {}
    for index in range(len(dataset)) if indices is None else indices:
        record = dataset.images[index]
        size = preset.padded_size(record.height, record.width)
        groups.setdefault(size, []).append(Key(index, 0, size))
    batches = [
        keys[start : start + batch_size]
        for keys in groups.values()
        for start in range(0, len(keys), batch_size)
    ]
    return Batches(Samples(dataset, preset), batches[rank::world_size], workers)


@dataclass
class TrainSampler:
    """The keys of every micro-batch of one rank, as lists; see the head of this file.

    ratios: width over height of each image.
    """

    ratios: Sequence[float]
    batch_size: int
    accumulate: int
    seed: int
    steps: range
    canvases: Sequence[Size]
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.order = functools.lru_cache(maxsize=4)(self.order)
        self.best = filled(self.canvases, self.ratios).argmax(0).tolist()  # canvas of each image

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps:
            for micro in range(self.accumulate):
                yield self.keys(step, micro)

    def keys(self, step: int, micro: int) -> list[Key]:
        """The images of one micro-step of this rank."""
        slots = self.accumulate * self.world_size
        images = self.images(step * slots * self.batch_size, slots * self.batch_size)
        canvas = self.canvas(step, [self.ratios[index] for index, _ in images])
        first = (micro * self.world_size + self.rank) * self.batch_size
        return [Key(*image, canvas) for image in images[first : first + self.batch_size]]

    def images(self, first: int, count: int) -> list[tuple[int, int]]:
        """Indices and epochs of the images at these positions of the stream."""
        places = (divmod(position, len(self.ratios)) for position in range(first, first + count))
        return [(self.order(epoch)[place], epoch) for epoch, place in places]

    def order(self, epoch: int) -> list[int]:
        """The images of an epoch. Those of each `SIMILAR` steps that lie in it whole are sorted by
        the canvas that they fill best, and these steps are shuffled again.
        """
        count = len(self.ratios)
        order = permutation(count, self.seed, epoch)
        if len(set(self.best)) == 1:
            return order
        per_step = self.batch_size * self.accumulate * self.world_size
        start = min(count, -epoch * count % per_step)  # images of a step of the epoch before
        generator = seeds.generator(self.seed, STEPS, epoch)
        arranged = order[:start]
        while start + per_step <= count:
            steps = min(SIMILAR, (count - start) // per_step)
            near = sorted(order[start : start + steps * per_step], key=self.best.__getitem__)
            for step in torch.randperm(steps, generator=generator).tolist():
                arranged += near[step * per_step : (step + 1) * per_step]
            start = len(arranged)
        return arranged + order[start:]

    def canvas(self, step: int, ratios: list[float]) -> Size:
        """One of the canvases that images of these shapes fill well, drawn from (seed, step)."""
        parts = filled(self.canvases, ratios).mean(1)  # [C]
        good = np.flatnonzero(parts >= FILLED * parts.max())
        return self.canvases[good[seeds.mix(self.seed, CANVAS, step) % len(good)]]


def first_images(num_images: int, seed: int, count: int) -> list[int]:
    """The first `count` images of the order drawn from `seed`."""
    return permutation(num_images, seed, 0)[:count]


def spread(num_images: int, count: int) -> list[int]:
    """`count` images spread evenly over all."""
    count = min(count, num_images)
    return [i * num_images // count for i in range(count)]


@functools.lru_cache(maxsize=4)
def permutation(num_images: int, seed: int, epoch: int) -> list[int]:
    generator = seeds.generator(seed, ORDER, epoch)
    return torch.randperm(num_images, generator=generator).tolist()


class Samples(Dataset):
    """Key -> the image through its preset, or the InputError of its file.

    Without a seed, for evaluation, an image that is left out is None. With one, for training, it is
    replaced by the next readable one. With copy-paste, objects of a second image are pasted, drawn
    evenly from all others that have objects, with a generator of its own, so that the first image
    does not depend on pasting.
    """

    def __init__(
        self, images: CocoDataset, preset: TrainPreset | EvalPreset, seed: int | None = None
    ) -> None:
        self.images, self._preset, self._seed = images, preset, seed
        self._copy_paste = getattr(preset, "copy_paste", 0.0)
        with_objects = images.with_objects() if self._copy_paste > 0 else []
        self._sources = np.array(with_objects, dtype=np.int64)

    def __getitem__(self, key: Key) -> Loaded:
        before = set(self.images.bad)
        try:
            seeded = self._seed is not None
            item = self._training(key) if seeded else self._view(key.index, key.canvas)
        except InputError as error:
            item = error
        return Loaded(item, [one for one in self.images.bad if one not in before])

    def _view(
        self, index: int, canvas: Size, generator: torch.Generator | None = None
    ) -> Sample | None:
        """One image through the preset; None where it is left out."""
        try:
            image, annotation = self.images.read(index)
        except InputError as error:
            self.images.leave_out(index, error)
            return None
        return self._preset(image, annotation, canvas, generator)

    def _training(self, key: Key) -> Sample:
        count = len(self.images)
        for index in (*range(key.index, count), *range(key.index)):
            generator = seeds.generator(self._seed, SAMPLE, key.epoch, key.index)
            sample = self._view(index, key.canvas, generator)
            if sample is not None:
                return self._pasted(sample, key)
        raise InputError(
            f"none of the {count} images in {self.images.folder} can be read: see the list of "
            "what was left out, and give others"
        )

    def _pasted(self, target: Sample, key: Key) -> Sample:
        others = self._sources[self._sources != key.index]
        if not len(others):
            return target
        generator = seeds.generator(self._seed, PASTE, key.epoch, key.index)
        chance, draw = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if chance >= self._copy_paste:
            return target
        source = self._view(int(others[int(draw * len(others))]), key.canvas, generator)
        return target if source is None else paste_objects(target, source, generator)


def collate_loaded(loaded: list[Loaded], collate: Callable[[list], Any]) -> Loaded:
    bad = [record for one in loaded for record in one.bad]
    for one in loaded:
        if isinstance(one.item, InputError):
            return Loaded(one.item, bad)
    samples = [one.item for one in loaded if one.item is not None]
    return Loaded(collate(samples) if samples else None, bad)


def worker_context(workers: int) -> str | None:
    """Fork on Linux, so that workers share the set in memory; elsewhere forking is not safe."""
    fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    return "fork" if workers and fork else None


def ignore_signals(worker: int) -> None:
    """Signals reach every process; the main process handles them and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
