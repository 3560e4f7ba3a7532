"""Entry: read the options, build everything, train, evaluate, draw."""

import shlex
from pathlib import Path

import torch

from data.dataset import CocoDataset, open_datasets
from data.errors import InputError
from data.loaders import covering_canvas, first_images, train_canvases
from data.presets import EvalPreset, TrainPreset
from engine import checkpoint, determinism, dist, log, options, pretrained, skipped
from engine.coco_ap import Scores, score
from engine.evaluate import predictions
from engine.files import FolderLock, choose
from engine.interrupt import GracefulStop, Interrupted
from engine.log import info
from engine.loop import NonFiniteError, Trainer
from engine.optim import MovingAverage, Schedule, describe_groups, parameter_groups
from engine.options import TrainOptions
from engine.report import summary
from engine.report.mask_grid import mask_grid_scores
from engine.report.tables import table
from engine.run import Data, Run
from engine.values import device_for
from engine.visualize import prediction_grid, spread
from mobileinst import weights, zoo
from mobileinst.set_prediction.postprocess import Postprocess

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> int:
    """`builder` builds the model: `engine.tools.own_parts` is an example of another one."""
    with dist.synced_errors(InputError):
        opts = parse(argv)
    with prepare(opts, builder) as run:
        try:
            fit(run)
        except Interrupted as stopped:
            info(f"stopped at iteration {run.saved}; the same command with --resume goes on")
            dist.shutdown(stopped)  # a rank that was interrupted alone does not wait for the others
            return stopped.exit_code
    return 0


def train(opts: TrainOptions, builder: checkpoint.Builder = zoo.build_from_config) -> Path:
    """Trains without a command line; returns the run folder.

    Raises:
        InputError: if the options or the data are wrong.
        FailedRun: if numbers are not finite or files cannot be written.
        KeyboardInterrupt: at Ctrl-C, when the current step is saved.
    """
    with prepare(opts, builder) as run:
        fit(run)
    return run.folder


def parse(argv: list[str]) -> TrainOptions:
    return options.train_options(argv, "Train a model, evaluate it, and draw its predictions.")


def open_data(opts: TrainOptions) -> Data:
    """Opens the training and validation sets.

    Raises:
        InputError: if something is missing or wrong with them.
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
        raise InputError(f"{train.name}: the training set has no images")
    if opts.overfit:
        train = train.subset(first_images(len(train), opts.seed, opts.overfit))
        train.name = f"overfit-{len(train)}"  # never called val
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


def total_iterations(opts: TrainOptions, images: int) -> int:
    """Length of the run in optimizer steps."""
    if opts.iterations is not None:
        return opts.iterations
    per_step = opts.batch_size * opts.accumulate * dist.world_size()
    return max(1, round(opts.epochs * images / per_step))


def derived_options(opts: TrainOptions, data: Data) -> dict[str, object]:
    """Values that follow from the data, by name."""
    derived = {"classes": len(data.train.categories)}
    if opts.overfit or not opts.canvas:
        derived["canvas"] = data.canvases
    if opts.iterations is None:
        derived["iterations"] = total_iterations(opts, len(data.train))
    if opts.overfit:
        derived |= dict.fromkeys(("scale", "flip", "colour", "copy_paste"), "off")
    return derived


def build(
    opts: TrainOptions, data: Data, device: torch.device, builder: checkpoint.Builder
) -> tuple[Trainer, Postprocess, zoo.Config, weights.Report | None]:
    """Trainer, post-processing, the model's config, and what was loaded from --pretrained.

    Raises:
        InputError: if there is no such model, or not from these weights or for these data.
    """
    config = options.model_config(opts, num_classes=len(data.train.categories))
    try:
        model, criterion, postprocess = builder(config, seed=opts.seed)
    except ValueError as error:
        reason = f"--set: no such model can be built, {error}; change the value"
        raise error if isinstance(error, InputError) else InputError(reason) from error
    report = None
    if opts.pretrained and not opts.resume:  # a checkpoint has the weights it led to
        names = data.train.class_names
        report = pretrained.load(model, config, opts.pretrained, names, opts.allow_partial)
    require_something_to_freeze(config, opts, report)
    require_cells(model, opts.batch_size, data.canvases)
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


def require_something_to_freeze(
    config: zoo.Config, opts: TrainOptions, report: weights.Report | None
) -> None:
    """Raises InputError if layers would be frozen at random values."""
    frozen = [key for key in ("frozen_norms", "frozen_stride") if getattr(config, key, False)]
    if frozen and not opts.resume and (report is None or not report.whole):
        raise InputError(
            f"--set {frozen[0]}: would keep layers at random values for ever; give weights for the "
            "whole backbone with --pretrained, or leave it out"
        )


def require_cells(model: torch.nn.Module, batch_size: int, canvases: list[tuple[int, int]]) -> None:
    """Raises InputError if a BatchNorm may see one value: a 64x64 canvas has one at stride 64."""
    has_norms = any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    if has_norms and batch_size == 1 and (64, 64) in canvases:
        raise InputError(
            "--batch-size 1: one image of 64x64 is too little for the batch norms; "
            "raise it, or raise --image-size"
        )


def prepare(opts: TrainOptions, builder: checkpoint.Builder) -> Run:
    """Data, model and folder of a run that is ready to train, new or resumed.

    Raises:
        InputError: on all ranks, if anything is wrong on any.
    """
    lock = FolderLock()

    def choose_and_lock() -> Path:
        folder = choose(opts.out, options.RUNS, opts.model, opts.resume, opts.overwrite)
        if folder.is_dir():
            lock.acquire(folder)
        return folder

    with dist.synced_errors(InputError):
        device = dist.device_for(device_for(opts.device))
        determinism.set_up(opts.deterministic, device, opts.threads)
    try:
        folder = dist.broadcast_from_main(choose_and_lock, InputError)
        with dist.synced_errors(InputError):
            if opts.pretrained and not opts.resume:
                pretrained.dry_run(opts, opts.pretrained, builder=builder)
        data = dist.local_first(lambda: open_data(opts), InputError)
        derived = derived_options(opts, data)
        info(opts.describe(derived))
        info(data.train.summary())
        if data.val is not data.train:
            info(data.val.summary())
        with dist.synced_errors(InputError):
            trainer, postprocess, config, report = build(opts, data, device, builder)
            run = Run(opts, folder, data, trainer, postprocess, config, derived, lock)
        describe_model(trainer.model, run)
        if report:
            info(report.text)
        with dist.synced_errors(InputError):
            if opts.resume:
                run.resume()
            elif dist.is_main_process():
                run.open(report)
    except BaseException:
        lock.release()
        raise
    return run


def describe_model(model: torch.nn.Module, run: Run) -> None:
    processes = f" in {dist.world_size()} processes" if dist.world_size() > 1 else ""
    size = run.facts["parameters"]
    info(f"{run.opts.model}: {size:,} parameters, on {run.trainer.device}{processes}")
    parts = [(name, part) for name, part in model.named_children() if list(part.parameters())]
    info(", ".join(f"{name}: {type(part).__name__}" for name, part in parts))


def fit(run: Run) -> None:
    """Trains to the end, evaluates when that is due, draws the best weights.

    Raises:
        Interrupted: at a signal, with everything saved up to the current step.
        NonFiniteError: with the way back to the last good weights.
    """
    trainer, total = run.trainer, run.trainer.schedule.iterations
    with GracefulStop() as stop:
        try:
            evaluate_if_due(run, stop)  # a resumed run may have been stopped while it evaluated
            batches = run.loader(run.opts.workers) if trainer.iteration < total else ()
            with log.progress(total=total, initial=trainer.iteration, unit="it") as bar:
                for values, seconds in trainer.steps(batches):
                    run.meter.add(values, seconds)
                    bar.update()
                    if values:
                        bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
                    if trainer.iteration % run.opts.log_every == 0 or trainer.iteration == total:
                        run.log_interval()
                    requested = stop.requested()
                    if requested:
                        skipped.gather(run.data.train.bad)
                    if requested or run.save_is_due():
                        run.save()
                    if requested:  # a signal that comes only now is for the next step
                        raise dist.mark_synced(Interrupted(stop.signal))
                    evaluate_if_due(run, stop)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{error}; the last good weights are in {run.folder / 'last.pt'}: go on from "
                "there with --resume, with a lower --lr, --amp off, or --skip-bad-steps N"
            ) from error
        with stop.immediate():
            finish(run)
    if dist.is_main_process():
        skipped.write(run.folder, *run.data.bad)
    skipped.report_skipped(run.data.bad, run.folder / skipped.NAME)


def evaluate_if_due(run: Run, stop: GracefulStop) -> None:
    """Evaluates where that is due and not done yet, as the last save knows.

    Raises:
        Interrupted: at a signal, at once; a resumed run evaluates again.
    """
    if run.evaluated < run.trainer.iteration and run.is_due(run.opts.eval_every):
        with stop.immediate():
            evaluate(run)
        run.save()


def evaluate(run: Run) -> None:
    """Scores the averaged weights on the validation split; keeps them if they are the best."""
    model = run.trainer.average.model if run.trainer.average else run.trainer.model
    detections = predict(run, model, run.data.val)
    skipped.gather(run.data.train.bad)
    run.evaluated = run.trainer.iteration
    if dist.is_main_process():
        limit = run.config.max_detections
        scores = score(run.data.val.ground_truth(), detections, max_dets=limit)
        if run.opts.overfit and not run.grid:
            numbers = through_grid(run).headline
            run.grid = {name: numbers[name] for name in ("AP", "AP50")}
        run.keep_best(scores)


def predict(
    run: Run, model: torch.nn.Module, dataset: CocoDataset, threshold: float | None = None
) -> list[dict]:
    """COCO results of a model; with a threshold, those that are shown to users."""
    return predictions(
        model,
        run.postprocess,
        dataset,
        image_size=run.opts.image_size,
        batch_size=run.opts.batch_size,
        workers=run.opts.workers,
        device=run.trainer.device,
        threshold=threshold,
    )


def through_grid(run: Run) -> Scores:
    """Scores of the ground truth through the mask grid of the model and back."""
    preset, limit = EvalPreset(run.opts.image_size), run.config.max_detections
    stride = run.trainer.model.mask_stride
    return mask_grid_scores(run.data.val, preset, run.postprocess, stride, max_dets=limit)


def finish(run: Run) -> None:
    """Draws the best weights' predictions, writes the summary, prints what comes next."""
    dist.barrier()  # until rank 0 has written best.pt
    path, val = run.folder / "best.pt", run.data.val
    with dist.synced_errors(InputError):
        content = checkpoint.load(path)
    threshold, origin = checkpoint.score_threshold(content["best"])
    model = run.trainer.average.model if run.trainer.average else run.trainer.model
    model.load_state_dict(content["model"])
    shown = val.subset(spread(len(val), 8))
    found = predict(run, model, shown, threshold)
    if not dist.is_main_process():
        return
    title, indices = f"{run.folder.name}, {val.name}", list(range(len(shown)))
    run.save_image(
        "predictions.png", prediction_grid(shown, indices, found, threshold, title=title)
    )
    summary.write(run.folder)
    info(table(Scores.from_dict(content["scores"])))
    info(f"predictions.png shows scores above {threshold:.3f} ({origin})")
    if run.grid:
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in run.grid.items())
        info(f"ground truth through the mask grid and back: {numbers}")
    info(f"\nrun folder      {run.folder}\n{summary.contents(run.folder)}\n\nnext:")
    info(f"  bash sbin/test.sh --checkpoint {shlex.quote(str(path))} --split train")
    info(f"  bash sbin/visualize.sh --checkpoint {shlex.quote(str(path))}")


if __name__ == "__main__":
    options.run_entry(main)
