"""The library in notebooks and programs: `engine.load`, `engine.train`, `engine.evaluate`.

They do what the commands of `sbin/` do, print nothing, show progress on request, and raise
ValueError for wrong input.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.errors import InputError
from data.images import as_rgb, read_rgb
from data.presets import WholeImage
from data.records import Category
from engine import backends, checkpoint, inputs, log, options
from engine import evaluate as evaluation
from engine import train as training
from engine.commands import arguments
from engine.result import Result
from engine.tiles import find
from engine.values import device_for
from mobileinst.deploy import fold_batchnorms
from mobileinst.set_prediction.postprocess import Postprocess

Source = str | Path | Image.Image | np.ndarray
SHOWN = 5  # classes named when a model is printed


class Model:
    """A trained model with its classes, from `load`. It may be called from several threads.

    threshold: least score of the results. categories: index, id and name of each class.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        postprocess: Postprocess,
        categories: list[Category],
        preset: WholeImage,
        threshold: float,
        device: torch.device,
    ) -> None:
        self.network, self.postprocess, self.categories = network, postprocess, categories
        self.preset, self.threshold, self.device = preset, threshold, device

    def __repr__(self) -> str:
        names = ", ".join(category.name for category in self.categories[:SHOWN])
        more = ", ..." * (len(self.categories) > SHOWN)
        return f"Model({names}{more}; threshold {self.threshold:.3f}, on {self.device})"

    def __call__(
        self,
        images: Source | Sequence[Source] | Iterator[Source],
        *,
        threshold: float | None = None,
        batch_size: int = 1,
        tiles: int | None = None,
        progress: bool = False,
    ) -> Result | list[Result] | Iterator[Result]:
        """Finds objects.

        Args:
            images: a path, a PIL image, or an array uint8 [H,W], [H,W,3] or [H,W,4]; a folder, read
                in natural order; a list of these; or a generator of them.
            threshold: another one for this call.
            batch_size: images in the network at a time; only those of one padded size can share.
            tiles: also look at so many overlapping windows along the long side of an image, for
                small objects in large images; as in the training if not given.
            progress: show a progress bar.
        Returns:
            A Result; of a folder or a list, a list of them; of a generator, a generator.
        Raises:
            InputError: a ValueError, if an image cannot be used.
        """
        if isinstance(images, (str, Path)) and Path(images).is_dir():
            images = list(inputs.images_of([Path(images)], recursive=False)[0].values())
        if isinstance(images, Iterator):
            return self.results(images, threshold, batch_size, tiles)
        if not isinstance(images, (list, tuple)):
            return next(self.results([images], threshold, 1, tiles))
        found = self.results(images, threshold, batch_size, tiles)
        return list(tqdm(found, total=len(images), disable=not progress, dynamic_ncols=True))

    def results(
        self, images: Iterable[Source], threshold: float | None, batch_size: int, tiles: int | None
    ) -> Iterator[Result]:
        """The Result of each image, in their order."""
        threshold = self.threshold if threshold is None else threshold
        preset = replace(self.preset, tiles=tiles or self.preset.tiles)
        network = self.network, self.postprocess, preset, self.device, threshold
        images = iter(images)
        while several := [rgb_of(one) for one in islice(images, batch_size)]:
            for image, found in zip(several, find(several, *network)):
                yield Result(image, found, self.categories)


def load(path: str | Path, *, device: str | None = None, threshold: float | None = None) -> Model:
    """The model of a checkpoint, or of an exported .onnx or .pte, with the threshold found at its
    evaluation if none is given.

    Args:
        device: "cuda", "mps" or "cpu", which exported files always use; the best one if not given.
    Raises:
        InputError: a ValueError, if the file is missing or not of this library.
    """
    with log.quiet():
        _, content, network, _, postprocess, preset = backends.load(Path(path))
        threshold, _ = checkpoint.score_threshold(content["best"], threshold)
    chosen = device_for(device)
    categories = [Category(**each) for each in content["classes"]]
    network = fold_batchnorms(network.to(chosen))
    return Model(network, postprocess, categories, preset, threshold, chosen)


def train(*, progress: bool = False, **given: object) -> Path:
    """Trains as `python -m engine.train` with these options; returns the run folder.

    Options have the names of the command line with underscores, as data="DIR", epochs=20.

    Raises:
        InputError: a ValueError, if the options or the data are wrong.
        FailedRun: if numbers are not finite or files cannot be written.
        KeyboardInterrupt: at an interrupt, when the current step is saved.
    """
    with log.quiet(progress):
        return training.train(options.TrainOptions(**given))


def evaluate(path: str | Path, *, progress: bool = False, **given: object) -> dict[str, float]:
    """Evaluates a checkpoint as `python -m engine.evaluate`; returns the 12 COCO numbers of
    masks by name, void removed where the set has void.

    Raises:
        InputError: a ValueError, if the checkpoint, the options or the data are wrong.
    """
    with log.quiet(progress):
        opts = evaluation.parse(arguments(checkpoint=path, **given))
        return evaluation.score_checkpoint(opts).headline


def rgb_of(source: Source) -> Image.Image:
    """The image as RGB, upright; raises InputError if it cannot be used."""
    if isinstance(source, (str, Path)):
        return read_rgb(Path(source))
    if isinstance(source, Image.Image):
        source.load()
        return as_rgb(source)
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"an image is a path, a PIL image or an array, not {type(source).__name__}; convert it"
        )
    shape = source.shape
    known = source.dtype == np.uint8 and len(shape) in (2, 3) and shape[2:] in ((), (3,), (4,))
    if not known or 0 in shape:
        raise InputError(
            f"an array {source.dtype} {list(shape)} is no image; give uint8 [H,W], [H,W,3] (RGB) "
            "or [H,W,4]"
        )
    return Image.fromarray(np.ascontiguousarray(source)).convert("RGB")
