"""Entry: read the options, build everything, train, evaluate, draw. No mathematics."""

import argparse
import json
import platform
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from data.dataset import CocoDataset, open_datasets
from data.errors import BadRecords, InputError
from data.loaders import covering_canvas, first_images, train_canvases, train_loader
from data.presets import EvalPreset, TrainPreset
from engine import (
    checkpoint,
    determinism,
    dist,
    evaluate,
    files,
    log,
    options,
    pretrained,
    skipped,
    visualize,
)
from engine.coco_ap import Scores, score
from engine.interrupt import GracefulStop, Interrupted
from engine.log import info
from engine.loop import NonFiniteError, Trainer
from engine.optim import MovingAverage, Schedule, describe_groups, parameter_groups
from engine.report import draw
from engine.report.mask_grid import mask_grid_scores
from engine.report.tables import markdown, table
from engine.run import choose

SAVE_SECONDS = 60  # between two saves; what a kill may cost
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.parser("Train a model, evaluate it, and draw its predictions.")
    options.add_data(parser)
    options.add_model(parser).add_argument(
        "--pretrained", type=Path, metavar="FILE",
        help="start from these weights: of a backbone, or a checkpoint with any class list",
    )  # fmt: skip

    length = parser.add_argument_group("length and schedule")
    length.add_argument(
        "--epochs", type=options.positive_real, action=options.Instead, of="iterations",
        help="length in passes over the training set",
    )  # fmt: skip
    length.add_argument(
        "--iterations", type=options.positive, action=options.Instead, of="epochs",
        help="length in optimizer steps",
    )  # fmt: skip
    length.add_argument("--schedule", choices=("cosine", "multistep", "poly"), default="cosine")
    length.add_argument(
        "--warmup", type=options.whole, default=200, help="iterations of it, linear"
    )
    length.add_argument(
        "--drops",
        type=options.whole,
        nargs="*",
        default=[],
        help="multistep: iterations of the drops",
    )

    step = parser.add_argument_group("optimizer step")
    step.add_argument("--batch-size", type=options.positive, default=8, help="pictures at a time")
    step.add_argument(
        "--accumulate", type=options.positive, default=1, help="batches per optimizer step"
    )
    step.add_argument("--lr", type=options.positive_real, default=1e-3)
    step.add_argument(
        "--backbone-factor", type=options.real, default=1.0, help="of the learning rate"
    )
    step.add_argument("--weight-decay", type=options.real, default=0.05)
    step.add_argument("--clip", type=options.real, default=1.0, help="gradient norm; 0 is off")
    step.add_argument(
        "--average", type=options.decay, default=0.998, help="decay of the EMA; 0 is off"
    )
    step.add_argument("--amp", choices=AMP, default="off")
    step.add_argument(
        "--skip-bad-steps", type=options.whole, default=0, metavar="N",
        help="leave out up to N steps of the run whose loss or gradient is not finite",
    )  # fmt: skip
    step.add_argument("--seed", type=int, default=0)

    views = parser.add_argument_group("what the model sees")
    views.add_argument("--image-size", type=options.positive, default=320, help="short side")
    views.add_argument(
        "--canvas", type=options.canvas, nargs="+",
        help="HEIGHTxWIDTH of training batches, one drawn per step; as evaluation if not given",
    )  # fmt: skip
    views.add_argument(
        "--scale", type=options.positive_real, nargs=2, default=(0.6, 1.8), metavar=("MIN", "MAX"),
        help="scale jitter; 1 just fits the picture into the canvas",
    )  # fmt: skip
    views.add_argument(
        "--flip", type=options.fraction, default=0.5, help="chance of a horizontal flip"
    )
    views.add_argument(
        "--colour", type=options.fraction, default=0.3, help="strength of the colour jitter"
    )
    views.add_argument(
        "--copy-paste", type=options.fraction, default=0.0,
        help="chance that objects of another training picture are pasted onto a picture",
    )  # fmt: skip
    views.add_argument(
        "--overfit", type=options.positive, metavar="N",
        help="self-test: train on the first N pictures of the seeded order, without "
        "augmentation, and evaluate on the same",
    )  # fmt: skip

    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, help="run folder; runs/<model>-NNN if not given")
    run.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    run.add_argument(
        "--eval-every", type=options.real, default=5,
        help="epochs between evaluations; 0 evaluates at the end only",
    )  # fmt: skip
    run.add_argument(
        "--save-every", type=options.positive, metavar="N",
        help="iterations between saves for --resume; after a minute or so if not given",
    )  # fmt: skip
    run.add_argument("--log-every", type=options.positive, default=20, help="iterations")
    options.add_device(parser).add_argument(
        "--deterministic", action=argparse.BooleanOptionalAction, default=None,
        help="the same bits each time; on if not given on a CPU, where it costs nothing",
    )  # fmt: skip
    options.add_workers(parser)
    options.add_debug(parser)
    opts = parser.parse_args(argv)
    if opts.epochs is None and opts.iterations is None:
        opts.epochs = 60.0
    return opts


@dataclass
class Data:
    """The two sets of a run; a self-test evaluates on what it trains on, and is called so."""

    train: CocoDataset
    val: CocoDataset
    preset: TrainPreset | EvalPreset
    canvases: list[tuple[int, int]]

    @property
    def bad(self) -> list[BadRecords]:
        """What was left out of each."""
        return [self.train.bad, self.val.bad]


def open_data(opts: argparse.Namespace) -> Data:
    """Open the training and validation sets.

    Raises:
        InputError: something is missing or wrong with them.
    """
    sets = open_datasets(
        data=opts.data,
        train_json=opts.train_json,
        val_json=opts.val_json,
        images=opts.images,
        splits=("train",) if opts.overfit else ("train", "val"),
        cache=options.DATASETS,
        crowd_as_instances=opts.crowd_as_instances,
        skip_bad=opts.skip_bad_records,
    )
    train = sets["train"]
    if not len(train):
        raise InputError(f"{train.name}: the training set has no pictures")
    if opts.overfit:
        train = train.subset(first_images(len(train), opts.seed, opts.overfit))
        train.name = f"overfit-{len(train)}"
        preset = EvalPreset(opts.image_size)
        return Data(train, train, preset, [covering_canvas(train, preset)])
    sets["val"].require_classes(train.class_names)
    preset = TrainPreset(
        scale=tuple(opts.scale),
        flip=opts.flip,
        brightness=opts.colour,
        contrast=opts.colour,
        saturation=opts.colour,
        hue=opts.colour / 15,
        grey=opts.colour / 15,
        copy_paste=opts.copy_paste,
    )
    canvases = opts.canvas or train_canvases(opts.image_size)
    short = max(min(canvas) for canvas in canvases)
    if not 0.75 * opts.image_size <= short <= 2 * opts.image_size:
        raise InputError(
            f"--image-size {opts.image_size}: the training canvases are {short} on the short side, "
            "so evaluation would see another scale than training; give --canvas as well"
        )
    return Data(train, sets["val"], preset, canvases)


def require_cells(model: torch.nn.Module, batch_size: int, canvases: list[tuple[int, int]]) -> None:
    """Batch norm needs more than one value, and a 64x64 canvas has one cell at stride 64.

    Raises:
        InputError: the model has batch norms, and a batch may have only one.
    """
    has_norms = any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    if has_norms and batch_size == 1 and (64, 64) in canvases:
        raise InputError(
            "--batch-size 1: one picture of 64x64 is too little for the batch norms; "
            "raise it, or raise --image-size"
        )


def pictures_per_step(opts: argparse.Namespace) -> int:
    """Of one optimizer step, over all processes."""
    return opts.batch_size * opts.accumulate * dist.world_size()


def total_iterations(opts: argparse.Namespace, pictures: int) -> int:
    """Length of the run in optimizer steps."""
    if opts.iterations is not None:
        return opts.iterations
    return max(1, round(opts.epochs * pictures / pictures_per_step(opts)))


def build_trainer(
    opts: argparse.Namespace, data: Data, device: torch.device, builder: checkpoint.Builder
):
    """Trainer, post-processing, the model's config, and what came from --pretrained."""
    config = options.model_config(opts, num_classes=len(data.train.categories))
    model, criterion, postprocess = builder(config, seed=opts.seed)
    report = None
    if opts.pretrained and not opts.resume:  # a checkpoint has the weights it led to
        names = data.train.class_names
        report = pretrained.load(model, config, opts.pretrained, names, opts.allow_partial)
    require_something_to_freeze(config, opts, report)
    model.to(device, memory_format=torch.channels_last)  # a quarter faster on a CPU
    dist.convert_sync_batchnorm(model, device)
    groups = parameter_groups(model, opts.lr, opts.weight_decay, opts.backbone_factor)
    info(describe_groups(groups))
    trainer = Trainer(
        model=model,
        criterion=criterion,
        optimizer=torch.optim.AdamW(groups, lr=opts.lr, fused=device.type in ("cpu", "cuda")),
        schedule=Schedule(
            total_iterations(opts, len(data.train)), opts.warmup, opts.schedule, tuple(opts.drops)
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=opts.amp == "fp16"),
        average=MovingAverage(model, opts.average) if opts.average else None,
        device=device,
        seed=opts.seed,
        accumulate=opts.accumulate,
        clip=opts.clip,
        amp=AMP[opts.amp],
        skip_bad_steps=opts.skip_bad_steps,
    )
    return trainer, postprocess, config, report


def same_file(one: object, other: object) -> bool:
    """Whether two options are equal, or two ways to write the same path."""
    if isinstance(one, str) and isinstance(other, str):
        return Path(one).resolve() == Path(other).resolve()
    return one == other


def require_something_to_freeze(config, opts: argparse.Namespace, report) -> None:
    """Raises InputError where layers would be kept at the random values they start from."""
    frozen = [key for key in ("frozen_norms", "frozen_stride") if getattr(config, key, False)]
    if frozen and not opts.resume and (report is None or not report.whole):
        raise InputError(
            f"--set {frozen[0]}: would keep layers at random values for ever; give weights for the "
            "whole backbone with --pretrained, or leave it out"
        )


class Run:
    """One training run and its folder."""

    def __init__(
        self,
        opts: argparse.Namespace,
        folder: Path,
        data: Data,
        device: torch.device,
        builder: checkpoint.Builder = options.build_model,
    ):
        self.opts, self.folder, self.data, self.device = opts, folder, data, device
        self.builder = builder
        self.trainer, self.postprocess, self.config, self.pretrained = build_trainer(
            opts, data, device, builder
        )
        self.best = {"AP": -2.0, "iteration": 0, "threshold": None}
        self.evaluated = 0  # the iteration of the last evaluation that came to its end
        self.meter = log.Meter()
        self.seconds = 0.0
        self.started = time.monotonic()
        self.saved, self.next_save = 0, self.started + SAVE_SECONDS

    @property
    def iterations_per_epoch(self) -> float:
        return len(self.data.train) / pictures_per_step(self.opts)

    def epoch_of(self, iteration: int) -> float:
        return iteration / self.iterations_per_epoch

    def is_due(self, every: float) -> bool:
        """Whether the last step crossed a multiple of `every` epochs, or was the last of all."""
        now = self.trainer.iteration
        if now == self.trainer.schedule.iterations or not every:
            return now == self.trainer.schedule.iterations
        return int(self.epoch_of(now) / every) > int(self.epoch_of(now - 1) / every)

    def resume(self) -> None:
        """Go on where `last.pt` was written; every process reads it, the main one says so."""
        path = self.folder / "last.pt"
        content = checkpoint.load(path)
        self.data.train.require_classes([entry["name"] for entry in content["classes"]])
        same_average = (content["average"] is None) == (self.trainer.average is None)
        if checkpoint.config_of(content) != self.config or not same_average:
            raise InputError(
                f"{path}: holds another model than these options describe; "
                "resume with the options of options.json"
            )
        self.require_same_training(content["options"], content["world_size"])
        self.keep_start(content["options"])
        if content["num_images"] != len(self.data.train):
            raise InputError(
                f"{path}: was trained on {content['pictures']} pictures and there "
                f"are {len(self.data.train)} now; resume with the same data, or start a new run"
            )
        self.data.train.bad.add(skipped.read(self.folder))
        try:
            checkpoint.restore(self.trainer, content)
            self.meter.restore(content["meter"])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{path}: its state does not fit this training ({type(error).__name__}); "
                f"start a new run with --pretrained {path}"
            ) from error
        self.saved = self.trainer.iteration
        self.best, self.seconds = dict(content["best"]), content["seconds"]
        self.evaluated = content["evaluated"]
        if dist.is_main_process():
            for path in self.folder.glob("*.tmp"):  # of a kill
                path.unlink()
            log.truncate_after(self.folder, self.trainer.iteration, self.evaluated)
            files.write_json(self.folder / "options.json", options.as_json(self.opts))
        for name, now in options.as_json(self.opts).items():
            before = content["options"].get(name)
            if name not in ("resume", "out", "overwrite") and now != before:
                info(f"resumed with --{name.replace('_', '-')} {now} (was {before})")
        info(f"resumed at iteration {self.trainer.iteration} of {self.trainer.schedule.iterations}")

    def require_same_training(self, before: dict, processes: int) -> None:
        """Length, rates, device and workers may change on the way; what is learned may not.

        The number of processes may, as long as a step takes the same pictures: then only rounding,
        the pictures that a BatchNorm sees together, and drop path are others.

        Raises:
            InputError: these options describe another training than the one in the folder.
        """
        now = options.as_json(self.opts)
        before = {"copy_paste": 0.0} | before  # which runs of an older version do not name
        fixed = ("overfit", "seed", "image_size", "canvas", "scale", "flip", "colour", "copy_paste")
        if processes == dist.world_size():
            fixed = ("batch_size", "accumulate", *fixed)
        else:
            self.require_same_step(before, processes)
        for name in fixed:
            if now[name] != before.get(name):
                raise InputError(
                    f"{self.folder}: --{name.replace('_', '-')} was {before.get(name)} in this "
                    f"run and is {now[name]} now; resume with the options of its options.json, "
                    "or start a new run"
                )

    def require_same_step(self, before: dict, processes: int) -> None:
        """Raises InputError where other processes would take other pictures in a step."""
        per_step = before["batch_size"] * before["accumulate"] * processes
        if pictures_per_step(self.opts) != per_step:
            raise InputError(
                f"{self.folder}: was trained by {processes} processes, {per_step} pictures a step; "
                f"for {dist.world_size()} give --batch-size and --accumulate that make it "
                f"{per_step} as well (they make it {pictures_per_step(self.opts)})"
            )
        now = dist.world_size()
        info(f"resumed by {now} instead of {processes} processes, same pictures a step")

    def keep_start(self, before: dict) -> None:
        """Take over what the run started from; it is not loaded again.

        Raises:
            InputError: the options name another file.
        """
        now = options.as_json(self.opts)
        for name in ("pretrained", "allow_partial"):
            started = before.get(name)
            if now[name] and not same_file(now[name], started):
                raise InputError(
                    f"{self.folder}: --{name.replace('_', '-')} {now[name]} did not start this run "
                    f"({started or 'nothing'} did); give what did, or start a new run"
                )
            setattr(self.opts, name, started)

    def save(self) -> None:
        """Writes `last.pt`, from which the run can be resumed, on rank 0.

        Raises:
            NonFiniteError: if a tensor of it is not finite; the file before is kept.
            FailedRun: if the file cannot be written; the file before is kept.
        """
        if not dist.is_main_process():
            return
        began = time.monotonic()
        checkpoint.require_finite(self.trainer)
        skipped.write(self.folder, *self.data.bad)
        resuming = {"evaluated": self.evaluated, "meter": self.meter.state()}
        checkpoint.save(
            self.folder / "last.pt", checkpoint.state_of(self.trainer) | self.about() | resuming
        )
        now = time.monotonic()
        self.saved = self.trainer.iteration
        self.next_save = now + max(SAVE_SECONDS, 50 * (now - began))  # 2 % of the time at most

    def about(self) -> dict:
        """What both checkpoints hold beside tensors."""
        return {
            **checkpoint.describe_model(self.config, self.data.train.categories),
            "options": options.as_json(self.opts),
            "world_size": dist.world_size(),
            "best": self.best,
            "num_images": len(self.data.train),
            "seconds": self.seconds + time.monotonic() - self.started,
        }

    def training_batch(self) -> Image.Image:
        """The first batch as the model sees it."""
        batch = next(iter(self.loader(workers=0))).to("cpu")
        return draw.training_batch(batch.images, batch.targets, self.data.train.class_names)

    def open_folder(self) -> None:
        """The run folder, once everything is known to work; a failed start leaves none behind."""
        first = self.training_batch()
        files.make_folder(self.folder, replace=self.opts.overwrite)
        self.save()  # first of all: a run that is killed from here on can be resumed
        files.write_json(self.folder / "options.json", options.as_json(self.opts))
        if self.pretrained:
            files.write_json(self.folder / "weights.json", self.pretrained.as_dict())
        self.save_picture("train_batch.png", first)

    def save_picture(self, name: str, picture: Image.Image) -> None:
        with files.replacing(self.folder / name) as temporary:
            picture.save(temporary, format="PNG")

    def loader(self, workers: int):
        opts = self.opts
        return train_loader(
            self.data.train,
            self.data.preset,
            batch_size=opts.batch_size,
            accumulate=opts.accumulate,
            seed=opts.seed,
            start_step=self.trainer.iteration,
            stop_step=self.trainer.schedule.iterations,
            canvases=self.data.canvases,
            workers=workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
        )

    def train(self, stop: GracefulStop) -> None:
        """Train to the end.

        Raises:
            Interrupted: at a signal, with everything saved up to the step that was running.
            NonFiniteError: with the way back to the last good weights.
        """
        try:
            self.evaluate_if_due(stop)  # a resumed run may have been stopped while it evaluated
            if self.trainer.iteration < self.trainer.schedule.iterations:
                self.train_until(stop)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{error}; the last good weights are in {self.folder / 'last.pt'}: go on from "
                "there with --resume, with a lower --lr, --amp off, or --skip-bad-steps N"
            ) from error

    def train_until(self, stop: GracefulStop) -> None:
        trainer, total = self.trainer, self.trainer.schedule.iterations
        with log.progress(total=total, initial=trainer.iteration, unit="it") as bar:
            for values, seconds in trainer.steps(self.loader(self.opts.workers)):
                self.meter.add(values, seconds)
                bar.update()
                if values:
                    bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
                if trainer.iteration % self.opts.log_every == 0 or trainer.iteration == total:
                    self.log_interval()
                asked = stop.requested()
                if asked:
                    skipped.gather(self.data.train.bad)
                if self.must_save() or asked:
                    self.save()
                if asked:  # one that comes only now is granted after the next step
                    raise dist.mark_synced(Interrupted(stop.signal))
                self.evaluate_if_due(stop)

    def must_save(self) -> bool:
        """Before evaluations, at the end, and otherwise as --save-every says, or the clock."""
        if self.opts.save_every:
            waited_enough = self.trainer.iteration % self.opts.save_every == 0
        else:
            waited_enough = time.monotonic() >= self.next_save
        return waited_enough or self.is_due(self.opts.eval_every)

    def evaluate_if_due(self, stop: GracefulStop) -> None:
        """Evaluate where that is due and not done yet; what was saved before holds that it is not.

        Raises:
            Interrupted: at a signal, at once; the resumed run evaluates anew.
        """
        if self.evaluated < self.trainer.iteration and self.is_due(self.opts.eval_every):
            with stop.immediate():
                self.evaluate()
            self.save()

    def log_interval(self) -> None:
        values, seconds = self.meter.flush()
        if not dist.is_main_process():
            return
        skipped = {"skipped": self.trainer.skipped} if self.trainer.skipped else {}
        groups = self.trainer.optimizer.param_groups
        row = {
            "iteration": self.trainer.iteration,
            "epoch": round(self.epoch_of(self.trainer.iteration), 3),
            "minutes": round((self.seconds + time.monotonic() - self.started) / 60, 2),
            "lr": max(group["lr"] for group in groups),
            **values,
            **skipped,
            "seconds": seconds,
            "pictures_per_second": pictures_per_step(self.opts) / max(1e-9, sum(seconds.values())),
        }
        log.append_jsonl(self.folder / "log.jsonl", row)
        terms = "  ".join(f"{name} {values[name]:.3f}" for name in values if "aux" not in name)
        info(
            f"epoch {row['epoch']:7.2f}  it {row['iteration']:6d}  lr {row['lr']:.2e}  {terms}  "
            f"{row['pictures_per_second']:.1f} pictures/s"
        )

    def evaluate(self) -> None:
        """Score the averaged weights on the validation split; keep them if they are the best."""
        model = self.trainer.average.model if self.trainer.average else self.trainer.model
        detections = self.predictions(model, self.data.val)
        skipped.gather(self.data.train.bad)
        self.evaluated = self.trainer.iteration
        if dist.is_main_process():
            self.keep_if_best(self.score(detections))

    def keep_if_best(self, scores: Scores) -> None:
        iteration, name = self.trainer.iteration, self.data.val.name
        log.append_csv(
            self.folder / "metrics.csv",
            {
                "iteration": iteration,
                "epoch": round(self.epoch_of(iteration), 3),
                **{f"{name}/{key}": round(value, 5) for key, value in scores.headline.items()},
            },
        )
        info(
            f"{name} at iteration {iteration}: mask AP {scores.headline['AP']:.3f}  "
            f"AP50 {scores.headline['AP50']:.3f}  AR100 {scores.headline['AR100']:.3f}"
        )
        if scores.headline["AP"] > self.best["AP"]:
            self.best = {
                "AP": scores.headline["AP"],
                "iteration": iteration,
                "threshold": scores.best_threshold,
            }
            checkpoint.require_finite(self.trainer)
            checkpoint.save(
                self.folder / "best.pt", checkpoint.weights_of(self.trainer) | self.about()
            )

    def predictions(
        self, model: torch.nn.Module, dataset: CocoDataset, threshold: float | None = None
    ) -> list[dict]:
        """What a model finds in a set; with a threshold, as it would be shown to people.

        Every process looks at a share of it, and the main one gets all.
        """
        return evaluate.predictions(
            model,
            self.postprocess,
            dataset,
            image_size=self.opts.image_size,
            batch_size=self.opts.batch_size,
            workers=self.opts.workers,
            device=self.device,
            threshold=threshold,
        )

    def score(self, detections: list[dict]) -> Scores:
        limit = self.config.max_detections
        return score(self.data.val.ground_truth(), detections, max_dets=limit)

    def finish(self) -> None:
        """Evaluate and draw the best weights, write the summary, say what comes next."""
        dist.barrier()  # until the main process has written them
        with dist.synced_errors(InputError):
            content = checkpoint.load(self.folder / "best.pt")
        model, _, _ = checkpoint.build(content, self.builder)
        detections = self.predictions(model.to(self.device), self.data.val)
        threshold, _ = checkpoint.score_threshold(content["best"])
        shown = self.data.val.subset(visualize.spread(len(self.data.val), 8))
        examples = self.predictions(model, shown, threshold)
        if dist.is_main_process():
            self.report(content, self.score(detections), shown, examples)

    def report(
        self, content: dict, scores: Scores, shown: CocoDataset, examples: list[dict]
    ) -> None:
        """Pictures, table and summary of the best weights, and what is where.

        examples: what they find in the pictures of `shown`, above the threshold.
        """
        threshold, origin = checkpoint.score_threshold(content["best"])
        sheet = visualize.prediction_grid(
            shown,
            list(range(len(shown))),
            examples,
            threshold,
            title=f"{self.folder.name}, {self.data.val.name}",
        )
        self.save_picture("predictions.png", sheet)
        of_grid = self.mask_grid_scores() if self.opts.overfit else None
        self.write_summary(content, scores, of_grid)
        info(table(scores))
        info(f"predictions.png shows scores above {threshold:.3f} ({origin})")
        if of_grid:
            info(
                f"ground truth through the mask grid and back: "
                f"AP {of_grid.headline['AP']:.3f}  AP50 {of_grid.headline['AP50']:.3f}"
            )
        self.say_where()

    def speed(self) -> str:
        """Pictures per second over the whole log, and where the time of a step goes."""
        rows = log.read_jsonl(self.folder / "log.jsonl")
        names = dict.fromkeys(name for row in rows for name in row["seconds"])
        parts = {name: sum(row["seconds"].get(name, 0) for row in rows) for name in names}
        total = sum(parts.values())
        pictures = len(rows) * pictures_per_step(self.opts)
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())
        return f"{pictures / total:.1f} pictures/s ({shares})"

    def mask_grid_scores(self) -> Scores:
        preset = EvalPreset(self.opts.image_size)
        stride = self.trainer.model.mask_stride
        return mask_grid_scores(
            self.data.val, preset, self.postprocess, stride, max_dets=self.config.max_detections
        )

    def write_summary(self, content: dict, scores: Scores, of_grid: Scores | None) -> None:
        lines = [
            f"# {self.folder.name}",
            "",
            f"- model: {self.opts.model}, {count(self.trainer.model):,} parameters",
            f"- data: {self.opts.data or self.opts.train_json}; "
            f"{self.data.train.summary().splitlines()[0]}; "
            f"evaluated on {self.data.val.summary().splitlines()[0]}",
            f"- length: {self.trainer.iteration} iterations "
            f"({self.epoch_of(self.trainer.iteration):.1f} epochs), "
            f"{content['seconds'] / 60:.1f} minutes up to the best weights",
            f"- best weights: iteration {content['iteration']}, split {self.data.val.name}",
            f"- speed: {self.speed()}",
            f"- machine: {platform.machine()}, {self.opts.threads} threads, {self.device}"
            f"{shared_by()}, torch {torch.__version__}"
            + (", the same bits each time" if torch.are_deterministic_algorithms_enabled() else ""),
            *self.start_line(),
            *self.skipped_line(),
            "",
            markdown(scores),
        ]
        if of_grid:
            lines += [
                "",
                f"Ground truth through the mask grid and back: AP {of_grid.headline['AP']:.3f}",
            ]
        with files.replacing(self.folder / "summary.md") as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def skipped_line(self) -> list[str]:
        """How often bad numbers were passed over, for the summary."""
        skipped = self.trainer.skipped
        return [f"- skipped: {skipped} steps with a bad loss or gradient"] if skipped else []

    def start_line(self) -> list[str]:
        """What the run started from, for the summary."""
        path = self.folder / "weights.json"
        if not path.exists():
            return []
        return [f"- started from: {json.loads(path.read_text(encoding='utf-8'))['headline']}"]

    def say_where(self) -> None:
        info(f"\nrun folder      {self.folder}")
        for name, what in (
            ("best.pt", "best weights, with their score threshold"),
            ("last.pt", "to go on with --resume"),
            ("metrics.csv", "one row per evaluation"),
            ("log.jsonl", "losses, rates and times"),
            ("weights.json", "what was loaded at the start"),
            (skipped.NAME, "bad records that were left out"),
            ("train_batch.png", "a batch as the model sees it"),
            ("predictions.png", "image / ground truth / prediction"),
            ("summary.md", "the table above"),
        ):
            if (self.folder / name).exists():
                info(f"  {name:<16}{what}")
        best = self.folder / "best.pt"
        info("\nnext:")
        info(f"  bash sbin/test.sh --checkpoint {shlex.quote(str(best))} --split train")
        info(f"  bash sbin/visualize.sh --checkpoint {shlex.quote(str(best))}")


def build_run(
    opts: argparse.Namespace, folder: Path, device: torch.device, builder: checkpoint.Builder
) -> Run:
    """Data, model and folder of a run that is ready to train, new or resumed.

    Raises:
        InputError: on all processes, if anything is wrong on any.
    """
    with dist.synced_errors(InputError):
        if opts.pretrained and not opts.resume:
            pretrained.dry_run(opts, opts.pretrained, builder=builder)
    data = dist.local_first(lambda: open_data(opts), InputError)
    info(data.train.summary())
    if data.val is not data.train:
        info(data.val.summary())
    with dist.synced_errors(InputError):
        run = Run(opts, folder, data, device, builder)
        require_cells(run.trainer.model, opts.batch_size, data.canvases)
    info(f"{opts.model}: {count(run.trainer.model):,} parameters, on {device}{shared_by()}")
    info(", ".join(f"{name}: {type(part).__name__}" for name, part in parts_of(run.trainer.model)))
    if run.pretrained:
        info(run.pretrained.text)
    with dist.synced_errors(InputError):
        if opts.resume:
            run.resume()
        elif dist.is_main_process():
            run.open_folder()
    return run


def shared_by() -> str:
    """For the line that says what trains."""
    return f" in {dist.world_size()} processes" if dist.world_size() > 1 else ""


def parts_of(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The parts that have parameters."""
    return [(name, part) for name, part in model.named_children() if count(part)]


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main(argv: list[str], builder: checkpoint.Builder = options.build_model) -> int:
    """`builder` puts the model together; `engine.tools.own_parts` is an example of another one."""
    with dist.synced_errors(InputError):
        opts = parse(argv)
        device = dist.device_for(options.device_for(opts.device))
        determinism.set_up(opts.deterministic, device, opts.threads)
        options.builder_keywords(opts.model, opts.set)  # before a long conversion, not after it
    folder = dist.broadcast_from_main(
        lambda: choose(opts.out, options.RUNS, opts.model, opts.resume, opts.overwrite),
        InputError,
    )
    run = build_run(opts, folder, device, builder)
    try:
        with GracefulStop() as stop:
            run.train(stop)
            with stop.immediate():
                run.finish()
    except Interrupted as stopped:
        info(f"stopped at iteration {run.saved}; the same command with --resume goes on")
        dist.shutdown(stopped)  # where one was interrupted alone, the others are not waited for
        return stopped.exit_code
    if dist.is_main_process():
        skipped.write(folder, *run.data.bad)
    skipped.report_skipped(run.data.bad, folder / skipped.NAME)
    return 0


if __name__ == "__main__":
    options.run_entry(main)
