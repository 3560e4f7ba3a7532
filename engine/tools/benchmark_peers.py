"""Entry: our Mask2Former beside that of transformers: the same weights, in turn in one process.

Both see the same picture and targets, and have the clipping and the optimizer of our training. Else
each is as its own users have it: ours keeps its memory channels last and normalises the picture
itself, theirs is given a normalised one and chooses its kind of attention.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from data.errors import InputError
from engine import options
from engine.files import FailedRun
from engine.log import info
from engine.tools.benchmark import in_turn, synthetic_batch
from mobileinst import zoo
from mobileinst.mask2former.published import hub_config

# mask2former_swin_tiny in the words of transformers, where those are not the defaults there.
SWIN = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
OTHERS: dict[str, int] = {}
CLASSES = 80

# Largest difference of two logits. Rounding alone is far smaller; but where it moves a cell across
# the border of what a query may look at, all that follows changes a little.
TOLERANCE = 1e-3


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.parser(
        "Times of mask2former_swin_tiny and of another library's model with the same weights; on "
        "the CPU, one picture at a time."
    )
    parser.add_argument("--against", choices=("transformers",), required=True)
    parser.add_argument("--image-size", type=options.positive, default=640, help="of the forward")
    parser.add_argument(
        "--train-size", type=options.positive, default=384, help="of the training step"
    )
    parser.add_argument("--threads", type=options.positive, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=options.positive, default=5)
    options.add_debug(parser)
    return parser.parse_args(argv)


def their_model() -> nn.Module:
    """The model of transformers, with start values of its own.

    Raises:
        InputError: transformers is not installed.
    """
    try:  # of requirements-dev.txt, and only needed here
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise InputError(
            f"--against transformers: it cannot be imported ({error}); install what "
            "requirements-dev.txt lists"
        ) from error
    disable_progress_bar()
    torch.manual_seed(0)
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    swin = SwinConfig(**SWIN, drop_path_rate=0.3, out_features=stages)
    config = Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES, **OTHERS)
    return Mask2FormerForUniversalSegmentation(config)


def our_model(theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Ours, with the weights of theirs, read from files that theirs writes; and its criterion."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = zoo.from_huggingface(folder)
        settings = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    criterion = zoo.build_from_config(hub_config(settings))[1]
    return ours.to(memory_format=torch.channels_last), criterion


class Pair:
    """Both models, and what is measured of them: for each, a call without arguments."""

    def __init__(self) -> None:
        self.theirs = their_model()
        self.ours, self.criterion = our_model(self.theirs)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
        """One picture size × size of three objects: as it is, normalised, and its targets."""
        images, _, targets = synthetic_batch(size, 1, CLASSES, torch.device("cpu"))
        return images, self.ours.normalise(images), targets

    def forwards(self, size: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
        """What computes class logits and mask logits in eval mode."""
        images, normalised, _ = self.batch(size)
        self.ours.eval()
        self.theirs.eval()

        @torch.inference_mode()
        def ours() -> list[torch.Tensor]:
            outputs = self.ours(images)
            return [outputs["class_logits"], outputs["mask_logits"]]

        @torch.inference_mode()
        def theirs() -> list[torch.Tensor]:
            outputs = self.theirs(pixel_values=normalised)
            return [outputs.class_queries_logits, outputs.masks_queries_logits]

        return {"ours": ours, "theirs": theirs}

    def training_steps(self, size: int) -> dict[str, Callable[[], float]]:
        """What changes the weights once, and returns the loss."""
        images, normalised, targets = self.batch(size)
        self.ours.train()
        self.theirs.train()
        masks = [target["masks"].float() for target in targets]
        labels = [target["labels"] for target in targets]

        def ours() -> torch.Tensor:
            return sum(self.criterion(self.ours(images), targets).values())

        def theirs() -> torch.Tensor:
            return self.theirs(normalised, mask_labels=masks, class_labels=labels).loss

        return {
            "ours": training_step(self.ours, ours),
            "theirs": training_step(self.theirs, theirs),
        }


def training_step(
    model: nn.Module, forward_and_loss: Callable[[], torch.Tensor]
) -> Callable[[], float]:
    """Forward and loss, then backward, clipping, AdamW; returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward_and_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01, foreach=True)
        optimizer.step()
        return loss.item()

    return step


def differences(forwards: dict[str, Callable[[], list[torch.Tensor]]]) -> list[float]:
    """The largest difference of the class logits, and that of the mask logits.

    Raises:
        FailedRun: it is too large: the two do not compute the same, so their times say nothing.
    """
    pairs = zip(*(forward() for forward in forwards.values()))
    found = [(ours - theirs).abs().max().item() for ours, theirs in pairs]
    if not all(difference < TOLERANCE for difference in found):
        classes, masks = found
        raise FailedRun(
            f"the logits of the two models differ by {classes:.1e} (classes) and {masks:.1e} "
            f"(masks), more than {TOLERANCE:g}: they do not compute the same"
        )
    return found


def timed(call: Callable) -> Callable[[], dict[str, float]]:
    """The call, telling the seconds it takes: by the clock, and of all its threads together."""

    def run() -> dict[str, float]:
        clock, cpu = time.perf_counter(), time.process_time()
        call()
        return {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}

    return run


def row(title: str, threads: int, measured: dict[str, list[dict[str, float]]]) -> str:
    """Median seconds of both, and medians of ours / theirs, which are taken round by round."""
    ours, theirs = measured["ours"], measured["theirs"]
    numbers = [statistics.median(run["clock"] for run in runs) for runs in (ours, theirs)]
    for kind in ("clock", "cpu"):
        numbers.append(statistics.median(a[kind] / b[kind] for a, b in zip(ours, theirs)))
    return f"{title:<28}{threads:>7}" + "".join(f"{number:>12.3f}" for number in numbers)


def main(argv: list[str]) -> None:
    opts = parse(argv)
    pair = Pair()
    classes, masks = differences(pair.forwards(opts.image_size))
    size = f"{opts.image_size} x {opts.image_size}"
    info(
        f"mask2former_swin_tiny beside {opts.against} {version(opts.against)}, the same weights; "
        f"torch {torch.__version__}, CPU, float32, batch 1\n"
        f"largest difference at {size}: {classes:.1e} (class logits), {masks:.1e} (mask logits)\n"
        f"medians of {opts.rounds} rounds, in turn; the ratios are ours / theirs, round by round\n"
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
            info(row(f"{name}, {size} x {size}", threads, in_turn(calls, opts.rounds)))


if __name__ == "__main__":
    options.run_entry(main)
