"""A training and its folder: opened or resumed, with checkpoints and logs."""

import multiprocessing
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data.errors import InputError
from data.loaders import Batches, train_loader
from engine import checkpoint, dist, files, log, options, skipped
from engine.coco_ap import Scores
from engine.datasets import Parts, write_lists
from engine.log import info
from engine.loop import Trainer
from engine.options import TrainOptions
from engine.report import draw, evidence
from engine.report.tables import number
from engine.values import shown
from mobileinst import weights, zoo
from mobileinst.set_prediction.postprocess import Postprocess

MAIN_TERMS = 4  # of the loss, itself among them, on the console; log.jsonl has all
SAVE_SECONDS = 60  # between two saves: the most work that a kill can cost


@dataclass
class Run:
    """A training and its folder: opening, resuming, checkpoints, logs.

    Args:
        folder: None until `open`, for a new run.
        derived: option values that follow from the data.
        lock: of the folder.
        best: highest AP so far, with its iteration and score threshold.
        evaluated: iteration of the last finished evaluation.
        saved: iteration of the last `last.pt`.
        grid: AP and AP50 of the ground truth through the mask grid, of an overfit run.
        found: what the last evaluation found, for the evidence (engine/report/evidence.py).
    """

    opts: TrainOptions
    folder: Path | None
    data: Parts
    trainer: Trainer
    postprocess: Postprocess
    config: zoo.Config
    derived: dict[str, object]
    lock: files.FolderLock
    best: dict = field(default_factory=lambda: {"AP": -2.0, "iteration": 0, "threshold": None})
    evaluated: int = 0
    saved: int = 0
    meter: log.Meter = field(default_factory=log.Meter)
    grid: dict[str, float] = field(default_factory=dict)
    found: evidence.Pass | None = None  # by the last evaluation

    def __post_init__(self) -> None:
        now = time.monotonic()
        self.started, self.cpu_started = now, cpu_seconds()  # earlier, for a resumed run
        self.next_save = now + SAVE_SECONDS
        self.facts = {  # for the summary
            "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
            "train": self.data.train.summary().splitlines()[0],
            "val": self.data.val.summary().splitlines()[0],
            "split": self.data.val.name,
            "machine": f"{platform.machine()}, {self.opts.threads} threads, {self.trainer.device}",
            "torch": str(torch.__version__),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }

    @property
    def averaged_model(self) -> nn.Module:
        """The model with averaged weights, if the run keeps an average."""
        return self.trainer.average.model if self.trainer.average else self.trainer.model

    @property
    def times(self) -> dict[str, float]:
        """Wall and CPU time of the run; the CPU time is that of this rank and its loaders."""
        wall, cpu = time.monotonic() - self.started, cpu_seconds() - self.cpu_started
        return {"seconds": wall, "cpu_seconds": cpu}

    def epoch_of(self, iteration: int) -> float:
        return iteration * self.opts.images_per_step / len(self.data.train)

    def evaluation_is_due(self) -> bool:
        """Whether the last step crossed a multiple of --eval-every epochs, or was the last one."""
        now, every = self.trainer.iteration, self.opts.eval_every
        if now >= self.trainer.schedule.iterations or not every:
            return now >= self.trainer.schedule.iterations
        return int(self.epoch_of(now) / every) > int(self.epoch_of(now - 1) / every)

    def save_is_due(self) -> bool:
        """By --save-every or the clock, and before every evaluation."""
        waited = time.monotonic() >= self.next_save
        if self.opts.save_every:
            waited = self.trainer.iteration % self.opts.save_every == 0
        return waited or self.evaluation_is_due()

    def loader(self, workers: int) -> Batches:
        """Training batches from the current iteration to the last."""
        return train_loader(
            self.data.train,
            self.data.preset,
            batch_size=self.opts.batch_size,
            accumulate=self.opts.accumulate,
            seed=self.opts.seed,
            start_step=self.trainer.iteration,
            stop_step=self.trainer.schedule.iterations,
            canvases=self.data.canvases,
            workers=workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
        )

    def open(self, report: weights.Report | None) -> None:
        """Makes and locks the folder, on rank 0; `report`: on the weights of the start."""
        batch = next(iter(self.loader(workers=0))).to("cpu")
        image = draw.training_batch(batch.images, batch.targets, self.data.train.class_names)
        self.folder = self.lock.claim(
            self.opts.out, options.RUNS, self.opts.model, options.MARK, self.opts.overwrite
        )
        self.save()  # first: from here on a killed run can be resumed
        self.write_options()
        write_lists(self.folder, self.data.train, self.data.val)
        if report:
            files.write_json(self.folder / "weights.json", report.as_dict())
        files.save_image(self.folder / "train_batch.png", image)

    def write_options(self) -> None:
        content = self.opts.plain() | {"derived": self.derived, "origins": self.opts.origins}
        files.write_json(self.folder / options.MARK, content)

    def resume(self) -> None:
        """Continues from `last.pt`; raises InputError if it is of another training."""
        path = self.folder / "last.pt"
        content = checkpoint.load(path)
        for one in self.data.sets:
            one.use_classes(content["classes"], str(path), may_have_more=False)
        same_average = (content["average"] is None) == (self.trainer.average is None)
        if checkpoint.config_of(content) != self.config or not same_average:
            raise InputError(
                f"{path}: holds another model than these options describe; resume with the "
                "options of options.json"
            )
        self.require_same_training(content)
        self.data.train.bad.add(skipped.read(self.folder))
        try:
            checkpoint.restore(self.trainer, content)
        except RuntimeError as error:  # torch's, for other names or shapes
            raise InputError(
                f"{path}: its weights do not fit the model, as parts of it have changed; resume "
                f"with those it was trained with, or start a new run with --pretrained {path}"
            ) from error
        self.meter.restore(content["meter"])
        self.saved, self.evaluated = self.trainer.iteration, content["evaluated"]
        kept = checkpoint.load_if_whole(self.folder / "best.pt")
        if kept and kept.get("best") == content["best"]:
            self.best = dict(content["best"])
        elif content["best"]["iteration"]:  # a score without its weights does not count
            info(
                f"{self.folder}: best.pt is missing or not that of last.pt; the score of iteration "
                f"{content['best']['iteration']} is dropped, the next evaluation writes best.pt"
            )
            self.evaluated = min(self.evaluated, self.trainer.iteration - 1)
        self.started -= content["seconds"]
        self.cpu_started -= content["cpu_seconds"]
        if dist.is_main_process():
            for unfinished in self.folder.glob("*.tmp"):
                unfinished.unlink()
            log.truncate_after(self.folder, self.trainer.iteration, self.evaluated)
            self.write_options()
        now = self.opts.plain()
        for name, before in content["options"].items():
            if name not in ("resume", "out", "overwrite") and now.get(name, before) != before:
                values = f"{shown(now[name])} (was {shown(before)})"
                info(f"resumed with --{name.replace('_', '-')} {values}")
        info(f"resumed at iteration {self.trainer.iteration} of {self.trainer.schedule.iterations}")

    def require_same_training(self, content: dict) -> None:
        """Checks that the options describe the training of the folder, raises InputError.

        Length, rates, device and workers may change. The number of ranks may if a step keeps its
        images: then only rounding, the images that a BatchNorm sees together, and drop path differ.
        """
        now, before, ranks = self.opts.plain(), content["options"], content["world_size"]
        fixed = [
            "overfit", "val_fraction", "seed", "image_size", "tiles", "canvas", "scale", "flip",
            "colour", "copy_paste",
        ]  # fmt: skip
        per_step = before["batch_size"] * before["accumulate"] * ranks
        if ranks == dist.world_size():
            fixed = ["batch_size", "accumulate", *fixed]
        elif self.opts.images_per_step != per_step:
            raise InputError(
                f"{self.folder}: was trained by {ranks} processes, {per_step} images a step; for "
                f"{dist.world_size()} give --batch-size and --accumulate that make it {per_step} "
                f"as well (they make it {self.opts.images_per_step})"
            )
        else:
            info(f"resumed by {dist.world_size()} instead of {ranks} processes, same images a step")
        for name in fixed:
            if now[name] != before[name]:
                raise InputError(
                    f"{self.folder}: --{name.replace('_', '-')} was {shown(before[name])} in this "
                    f"run and is {shown(now[name])} now; resume with the options of its "
                    "options.json, or start a new run"
                )
        images, count = content["num_images"], len(self.data.train)
        if images != count:
            raise InputError(
                f"{self.folder / 'last.pt'}: was trained on {images} images and there are {count} "
                "now; resume with the same data, or start a new run"
            )
        given, start = self.opts.pretrained, before["pretrained"]
        if given and not (start and given.resolve() == Path(start).resolve()):
            raise InputError(
                f"{self.folder}: --pretrained {given} did not start this run "
                f"({start or 'nothing'} did); give what did, or leave it out"
            )
        self.opts.pretrained, self.opts.allow_partial = start, before["allow_partial"]

    def about(self) -> dict:
        """What both checkpoints hold beside tensors."""
        return {
            **checkpoint.describe_model(self.config, self.data.train.categories),
            "options": self.opts.plain(),
            "world_size": dist.world_size(),
            "best": self.best,
            "num_images": len(self.data.train),
            "about": self.facts,
            **self.times,
        }

    def save(self) -> None:
        """Writes `last.pt` on rank 0; raises NonFiniteError, FailedRun and keeps the old one."""
        if not dist.is_main_process():
            return
        began = time.monotonic()
        checkpoint.require_finite(self.trainer)
        skipped.write(self.folder, self.data.bad)
        resuming = {"evaluated": self.evaluated, "meter": self.meter.state()}
        checkpoint.save(
            self.folder / "last.pt", checkpoint.state_of(self.trainer) | self.about() | resuming
        )
        now = time.monotonic()
        self.saved = self.trainer.iteration
        self.next_save = now + max(SAVE_SECONDS, 50 * (now - began))  # 2 % of the time at most

    def log_interval(self) -> None:
        """Adds a row to `log.jsonl` on rank 0 and prints it; the next interval starts."""
        values, seconds = self.meter.flush()
        if not dist.is_main_process():
            return
        times = self.times
        row = {
            "iteration": self.trainer.iteration,
            "epoch": round(self.epoch_of(self.trainer.iteration), 3),
            "minutes": round(times["seconds"] / 60, 2),
            "cpu_minutes": round(times["cpu_seconds"] / 60, 4),
            "lr": max(group["lr"] for group in self.trainer.optimizer.param_groups),
            **values,
            **({"skipped": self.trainer.skipped} if self.trainer.skipped else {}),
            "seconds": seconds,
            "images_per_second": self.opts.images_per_step / max(1e-9, sum(seconds.values())),
        }
        log.append_jsonl(self.folder / "log.jsonl", row)
        terms = "  ".join(f"{name} {values[name]:.3f}" for name in list(values)[:MAIN_TERMS])
        total = self.trainer.schedule.iterations
        left = (total - self.trainer.iteration) * sum(seconds.values())
        info(
            f"epoch {row['epoch']:6.1f}/{self.epoch_of(total):<5.4g}  {terms}  "
            f"{row['images_per_second']:.1f} images/s  {tqdm.format_interval(left)} left"
        )

    def keep_best(self, scores: Scores, seen: Scores | None) -> None:
        """Adds a row to `metrics.csv`, and writes `best.pt` if no earlier score is higher."""
        iteration, name, numbers = self.trainer.iteration, self.data.val.name, scores.headline
        row = {"iteration": iteration, "epoch": round(self.epoch_of(iteration), 3)}
        row |= {f"{name}/{key}": round(value, 5) for key, value in numbers.items()}
        text = (
            f"{name} at iteration {iteration}: mask AP {number(numbers['AP'])}  "
            f"AP50 {number(numbers['AP50'])}  AR100 {number(numbers['AR100'])}"
        )
        if seen:
            on_train = {key: seen.headline[key] for key in ("AP", "AP50")}
            row |= {f"train/{key}": round(value, 5) for key, value in on_train.items()}
            text += f"  train AP {number(on_train['AP'])}  AP50 {number(on_train['AP50'])}"
        log.append_csv(self.folder / "metrics.csv", row)
        info(text)
        if numbers["AP"] < self.best["AP"]:
            return
        threshold = scores.best_threshold
        self.best = {"AP": numbers["AP"], "iteration": iteration, "threshold": threshold}
        checkpoint.require_finite(self.trainer)
        content = {"iteration": iteration, "model": self.averaged_model.state_dict()} | self.about()
        checkpoint.save(
            self.folder / "best.pt", content | {"scores": asdict(scores), "grid": self.grid}
        )


def cpu_seconds() -> float:
    """CPU time of this process and its loaders (running ones from /proc, on Linux only)."""
    running = multiprocessing.active_children()  # first: this collects those that have ended
    seconds = sum(os.times()[:4])
    for child in running:
        with suppress(OSError):
            values = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, values[11:13])) / os.sysconf("SC_CLK_TCK")  # user, system
    return seconds
