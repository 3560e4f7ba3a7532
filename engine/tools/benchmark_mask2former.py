"""Entry: our Mask2Former beside that of transformers, with the same weights, in one process.

Both get the same image and targets, and the clipping and the optimizer of our training. Otherwise
each has its own defaults: ours is channels last and normalises the image itself, theirs gets a
normalised image and chooses its attention.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import InputError
from engine import options
from engine.files import FailedRun
from engine.log import info
from engine.tools.benchmark import alternately, optimizer_step, synthetic_batch, timed
from mobileinst import zoo
from mobileinst.mask2former.published import hub_config

# mask2former_swin_tiny for transformers, where its defaults differ.
SWIN = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
OTHERS: dict[str, int] = {}
CLASSES = 80

# Largest difference of two logits. Rounding alone is far smaller, but it may flip a cell of an
# attention mask, which changes all that follows a little.
TOLERANCE = 1e-3


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(
        "Times of mask2former_swin_tiny and of the model of transformers with the same weights; on "
        "the CPU, one image at a time."
    )
    add, positive = parser.add_argument, options.positive
    add("--image-size", type=positive, default=640, help="both sides of the image of the forward")
    add("--train-size", type=positive, default=384, help="the same of the training step")
    add("--threads", type=positive, nargs="+", default=[1, 2], help="numbers of threads")
    add("--rounds", type=positive, default=5, help="runs for the median time")
    return parser.parse_args(argv)


def their_model() -> nn.Module:
    """The model of transformers; raises InputError if it is not installed."""
    try:  # of requirements-dev.txt, only needed here
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise InputError(
            f"transformers cannot be imported ({error}); install what requirements-dev.txt lists"
        ) from error
    disable_progress_bar()
    torch.manual_seed(0)
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    swin = SwinConfig(**SWIN, drop_path_rate=0.3, out_features=stages)
    config = Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES, **OTHERS)
    return Mask2FormerForUniversalSegmentation(config)


class Pair:
    """Both models with the same weights; each measurement is a call without arguments."""

    def __init__(self) -> None:
        self.theirs = their_model()
        with tempfile.TemporaryDirectory() as folder:
            self.theirs.save_pretrained(folder)
            self.ours = zoo.from_huggingface(folder).to(memory_format=torch.channels_last)
            settings = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        self.criterion = zoo.build_from_config(hub_config(settings))[1]

    def batch(self, size: int) -> tuple[Tensor, Tensor, list[dict]]:
        """An image size x size of three objects, raw and normalised, and its targets."""
        images, _, targets = synthetic_batch(size, 1, CLASSES, torch.device("cpu"))
        return images, self.ours.normalise(images), targets

    def forwards(self, size: int) -> dict[str, Callable[[], list[Tensor]]]:
        """Calls that compute class logits and mask logits in eval mode."""
        images, normalised, _ = self.batch(size)
        self.ours.eval()
        self.theirs.eval()

        @torch.inference_mode()
        def ours() -> list[Tensor]:
            outputs = self.ours(images)
            return [outputs["class_logits"], outputs["mask_logits"]]

        @torch.inference_mode()
        def theirs() -> list[Tensor]:
            outputs = self.theirs(pixel_values=normalised)
            return [outputs.class_queries_logits, outputs.masks_queries_logits]

        return {"ours": ours, "theirs": theirs}

    def training_steps(self, size: int) -> dict[str, Callable[[], float]]:
        """Calls that take one training step and return the loss."""
        images, normalised, targets = self.batch(size)
        masks = [target["masks"].float() for target in targets]
        labels = [target["labels"] for target in targets]

        def ours() -> Tensor:
            return sum(self.criterion(self.ours(images), targets).values())

        def theirs() -> Tensor:
            return self.theirs(normalised, mask_labels=masks, class_labels=labels).loss

        return {
            "ours": optimizer_step(self.ours.train(), ours, clip=0.01),
            "theirs": optimizer_step(self.theirs.train(), theirs, clip=0.01),
        }


def differences(forwards: dict[str, Callable[[], list[Tensor]]]) -> list[float]:
    """Largest differences of class and mask logits; raises FailedRun above `TOLERANCE`."""
    pairs = zip(*(forward() for forward in forwards.values()))
    classes, masks = ((ours - theirs).abs().max().item() for ours, theirs in pairs)
    if not (classes < TOLERANCE and masks < TOLERANCE):
        raise FailedRun(
            f"the logits of the two models differ by {classes:.1e} (classes) and {masks:.1e} "
            f"(masks), more than {TOLERANCE:g}: they do not compute the same"
        )
    return [classes, masks]


def main(argv: list[str]) -> None:
    opts = parse(argv)
    pair = Pair()
    classes, masks = differences(pair.forwards(opts.image_size))
    size = f"{opts.image_size} x {opts.image_size}"
    info(
        f"mask2former_swin_tiny beside transformers {version('transformers')}, the same weights; "
        f"torch {torch.__version__}, CPU, float32, batch 1\n"
        f"largest difference at {size}: {classes:.1e} (class logits), {masks:.1e} (mask logits)\n"
        f"medians of {opts.rounds} alternating rounds; ratios: ours / theirs by round\n"
    )
    heads = ("ours, s", "theirs, s", "time", "CPU time")
    info(f"{'':<28}{'threads':>7}" + "".join(f"{head:>12}" for head in heads))
    for name, size, build in (
        ("forward", opts.image_size, pair.forwards),
        ("training step", opts.train_size, pair.training_steps),
    ):
        calls = {whose: timed(call) for whose, call in build(size).items()}
        for threads in opts.threads:
            torch.set_num_threads(threads)
            ours, theirs = alternately(calls, opts.rounds).values()
            numbers = [statistics.median(run["wall"] for run in runs) for runs in (ours, theirs)]
            for clock in ("wall", "cpu"):
                ratios = (one[clock] / other[clock] for one, other in zip(ours, theirs))
                numbers.append(statistics.median(ratios))
            row = f"{name + f', {size} x {size}':<28}{threads:>7}"
            info(row + "".join(f"{number:>12.3f}" for number in numbers))


if __name__ == "__main__":
    options.run_entry(main)
