"""Entry: read the options, build everything, train, evaluate, draw."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from data.errors import InputError, counted
from data.loaders import covering_canvas, spread, train_canvases
from data.presets import EvalPreset, TrainPreset
from engine import (
    Command,
    checkpoint,
    commands,
    determinism,
    dist,
    files,
    log,
    options,
    recipes,
    skipped,
    start_weights,
)
from engine.coco_ap import Scores, score, score_with_curves
from engine.datasets import Parts, open_parts, with_seen
from engine.fit import fit_to_data, report_full_images
from engine.inference import predictions
from engine.interrupt import GracefulStop, Interrupted
from engine.log import info
from engine.loop import NonFiniteError, Trainer
from engine.optim import MovingAverage, Schedule, describe_groups, parameter_groups
from engine.options import TrainOptions
from engine.report import draw, evidence, run_page, summary
from engine.report.mask_grid import mask_grid_scores
from engine.report.tables import table
from engine.run import Run
from engine.values import device_for, model_errors, shown
from engine.visualize import prediction_grid, title_of
from mobileinst import weights, zoo
from mobileinst.set_prediction.postprocess import Postprocess

FROZEN = "frozen_norms", "frozen_depthwise", "frozen_stride"  # keep what weights brought
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


def open_data(opts: TrainOptions) -> Parts:
    """Opens the training and validation sets; raises InputError if something is wrong with them."""
    parts = open_parts(opts, opts.out if opts.resume else None)
    train = parts.train
    if not train.with_objects():
        more = f" and {counted(n, 'box')} without masks" if (n := train.dropped["boxes"]) else ""
        left = "".join(f" ({note})" for note in train.notes if "left out" in note)
        raise InputError(
            f"{train.source}: no image of {train.name} has an object to train on, crowds"
            f"{more} do not count{left}; give annotations with outlines or masks, or read crowds "
            "as objects with --crowd-as-instances, boxes with --boxes-as-masks"
        )
    if opts.overfit:
        preset = EvalPreset(opts.image_size)
        report_full_images(opts, {"train": train, "val": train})
        return parts._replace(preset=preset, canvases=[covering_canvas(train, preset)])
    if opts.recipe in recipes.FITTED:
        for name, reason in fit_to_data(opts, train).items():
            key = name.removeprefix("set.")
            value = opts.set[key] if name.startswith("set.") else getattr(opts, name)
            info(f"{key} {shown(value)}: {reason}")
        parts = with_seen(opts, train, parts.val)  # fitting may change --eval-train
    report_full_images(opts, {"train": train, "val": parts.val if parts.has_val else train})
    preset = TrainPreset(
        scale=tuple(opts.scale),
        flip=opts.flip,
        copy_paste=opts.copy_paste,
        **dict.fromkeys(("brightness", "contrast", "saturation"), opts.colour),
        **dict.fromkeys(("hue", "grey"), opts.colour / 15),
    )
    canvases = opts.canvas or train_canvases(opts.image_size)
    short = max(min(canvas) for canvas in canvases)
    if not 0.75 * opts.image_size <= short <= 2 * opts.image_size:
        raise InputError(
            f"--image-size {opts.image_size}: the training canvases are {short} on the short side, "
            "so evaluation would see another scale than training; give --canvas as well"
        )
    if not parts.has_val:
        info(f"evaluated on {counted(len(parts.val), 'training image')}, which choose best.pt")
    return parts._replace(preset=preset, canvases=canvases)


def total_iterations(opts: TrainOptions, images: int) -> int:
    """Length of the run in optimizer steps."""
    if opts.iterations is not None:
        return opts.iterations
    return max(1, round(opts.epochs * images / opts.images_per_step))


def shorten_warmup(opts: TrainOptions, iterations: int) -> None:
    """Ends the warm-up after a tenth of a run that would not reach its learning rate; one that the
    user gave stays. Both are printed.
    """
    if opts.warmup < iterations:
        return
    length = f"the run has {iterations} iterations"
    if opts.origins["warmup"] == "user":
        info(f"warmup {opts.warmup}: {length}, it ends below the learning rate {opts.lr:g}")
        return
    info(f"warmup {iterations // 10}: {length}, with {opts.warmup} it would end below --lr")
    opts.warmup, opts.origins["warmup"] = iterations // 10, "data"


def derived_options(opts: TrainOptions, data: Parts) -> dict[str, object]:
    """Values that follow from the data, by name."""
    derived = {"classes": len(data.train.categories)}
    if opts.overfit or not opts.canvas:
        derived["canvas"] = data.canvases
    if opts.iterations is None:
        derived["iterations"] = total_iterations(opts, len(data.train))
    if opts.overfit:
        names = ("scale", "flip", "colour", "copy_paste", "eval_train")
        derived |= dict.fromkeys(names, "off")
    return derived


def build(
    opts: TrainOptions,
    data: Parts,
    device: torch.device,
    builder: checkpoint.Builder,
    file: weights.WeightFile | None = None,
) -> tuple[Trainer, Postprocess, zoo.Config, weights.Report | None]:
    """Trainer, post-processing, the model's config, and the report on the loaded file, if any.
    Raises InputError if there is no such model, or not with these weights or this data.
    """
    # zoo.MODELS[opts.model] with the keywords of the recipe and of --set
    config = options.model_config(opts, num_classes=len(data.train.categories))
    report, classes = None, data.train.class_names
    with model_errors():
        model, criterion, postprocess = builder(config, seed=opts.seed)
        if file:
            keywords = {"config": asdict(config), "allow_partial": opts.allow_partial}
            report = weights.load(model, file, classes=classes, **keywords)
    frozen = next((name for name in FROZEN if getattr(config, name)), None)
    if frozen and not opts.resume and not (report and report.whole):
        in_recipe = opts.origins.get(f"set.{frozen}") == "recipe"
        where = f"--recipe {opts.recipe}, {frozen}" if in_recipe else f"--set {frozen}"
        raise InputError(
            f"{where}: would keep layers at random values forever; give weights for the whole "
            "backbone with --pretrained, or leave it out"
        )
    has_norms = any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    if has_norms and opts.batch_size == 1 and (64, 64) in data.canvases:  # one value at stride 64
        raise InputError(
            "--batch-size 1: one image of 64x64 is too little for the batch norms; "
            "raise it, or raise --image-size"
        )
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


@contextmanager
def prepare(opts: TrainOptions, builder: checkpoint.Builder) -> Iterator[Run]:
    """A run that is ready to train, new or resumed; its folder is locked to the end of the block.
    Raises InputError, on all ranks, if anything is wrong on any.
    """
    lock = files.FolderLock()

    def check_and_lock() -> None:
        if not opts.resume:
            files.require_free(opts.out, opts.overwrite, options.MARK, "go on with --resume, ")
        if opts.out and opts.out.is_dir():
            lock.acquire(opts.out)

    with dist.synced_errors(InputError):
        device = dist.device_of_rank(device_for(opts.device))
        determinism.set_up(opts.deterministic, device, opts.threads)
    try:
        find = start_weights.of_run if opts.resume else start_weights.choose
        values = dist.broadcast_from_main(lambda: find(opts), InputError)
        opts = opts.changed(values, "run" if opts.resume else "weights")
        info("\n".join(start_weights.describe(opts.plain())))
        dist.broadcast_from_main(check_and_lock, InputError)
        with dist.synced_errors(InputError), model_errors():
            file = None
            if opts.pretrained and not opts.resume:  # a checkpoint has the weights it led to
                file = weights.open_weights(opts.pretrained)
                options.dry_run(opts, file, builder=builder)
        data = dist.local_first(lambda: open_data(opts), InputError)
        shorten_warmup(opts, total_iterations(opts, len(data.train)))
        derived = derived_options(opts, data)
        info(opts.describe(derived))
        info(data.train.summary())
        if data.val is not data.train:
            info(data.val.summary())
            if not data.val.with_objects():
                info(f"{data.val.source}: no objects, so no score: best.pt holds the last weights")
        with dist.synced_errors(InputError):
            trainer, postprocess, config, report = build(opts, data, device, builder, file)
            del file  # frees its tensors
            run = Run(opts, opts.out, data, trainer, postprocess, config, derived, lock)
        processes = f" in {dist.world_size()} processes" if dist.world_size() > 1 else ""
        info(f"{opts.model}: {run.facts['parameters']:,} parameters, on {device}{processes}")
        parts = [(name, part) for name, part in trainer.model.named_children()]
        parts = [(name, part) for name, part in parts if list(part.parameters())]
        info(", ".join(f"{name}: {type(part).__name__}" for name, part in parts))
        if report:
            info(report.text)
        with dist.synced_errors(InputError):
            if opts.resume:
                run.resume()
            elif dist.is_main_process():
                run.open(report)
        run.folder = dist.broadcast_from_main(lambda: run.folder)
        yield run
    finally:
        lock.release()


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
                    if stop.requested():
                        skipped.gather(run.data.train.bad)
                        run.save()
                        raise dist.mark_synced(Interrupted(stop.signal))
                    if run.save_is_due():
                        run.save()
                    evaluate_if_due(run, stop)
        except Interrupted:
            write_page(run)
            raise
        except NonFiniteError as error:
            write_page(run)
            raise NonFiniteError(
                f"{error}; the last good weights are in {run.folder / 'last.pt'}: go on from "
                "there with --resume, with a lower --lr, --amp off, or --skip-bad-steps N"
            ) from error
        with stop.immediate():
            finish(run)
    if dist.is_main_process():
        skipped.write(run.folder, run.data.bad)
    skipped.report_skipped(run.data.bad, run.folder / skipped.NAME)


def write_page(run: Run, *about: object) -> None:
    """The page of a training; `about`: its evidence and data set, unless it has ended early."""
    if dist.is_main_process():
        files.write_text(run.folder / run_page.NAME, run_page.build(run.folder, *about))


def evaluate_if_due(run: Run, stop: GracefulStop) -> None:
    """Evaluates where that is due and not done. A signal ends it at once, with Interrupted: the
    resumed run evaluates again.
    """
    if run.evaluated < run.trainer.iteration and run.evaluation_is_due():
        with stop.immediate():
            evaluate(run)
        run.save()


def evaluate(run: Run) -> None:
    """Scores the averaged weights on the validation split and on some training images; keeps them
    if they are the best.
    """
    val, seen, limit = run.data.val, run.data.seen, run.config.max_detections
    ends = run.trainer.iteration >= run.trainer.schedule.iterations
    found = evidence.run_pass(
        run.averaged_model, run.postprocess, run.data, every=ends, **inference_settings(run)
    )
    skipped.gather(run.data.train.bad)
    run.evaluated = run.trainer.iteration
    run.found = found if ends else None
    if not dist.is_main_process():
        return
    scores, curves = score_with_curves(val.ground_truth(), found.detections, max_dets=limit)
    if ends:
        run.found = found._replace(scores=scores, curves=curves)
    if run.opts.overfit and not run.grid:
        preset, stride = EvalPreset(run.opts.image_size), run.trainer.model.mask_stride
        grid = mask_grid_scores(val, preset, run.postprocess, stride, max_dets=limit)
        run.grid = {name: grid.headline[name] for name in ("AP", "AP50")}
    run.keep_best(scores, seen and score(seen.ground_truth(), found.seen, max_dets=limit))


def inference_settings(run: Run) -> dict[str, object]:
    return {
        "preset": EvalPreset(run.opts.image_size, tiles=run.opts.tiles),
        "batch_size": run.opts.batch_size,
        "workers": run.opts.workers,
        "device": run.trainer.device,
    }


def finish(run: Run) -> None:
    """Draws the best weights' predictions, writes summary and page, prints what comes next."""
    dist.barrier()  # until rank 0 has written best.pt
    path, val = run.folder / "best.pt", run.data.val
    with dist.synced_errors(InputError):
        content = checkpoint.load(path)
    threshold, origin = checkpoint.score_threshold(content["best"])
    run.averaged_model.load_state_dict(content["model"])
    model, settings = run.averaged_model, inference_settings(run)
    shown = val.subset(spread(len(val), 8))
    drawn = predictions(model, run.postprocess, shown, **settings, threshold=threshold)
    found = run.found
    if not found or content["iteration"] != run.trainer.iteration:  # the best ones are older
        found = evidence.run_pass(model, run.postprocess, run.data, **settings)
    if not dist.is_main_process():
        return
    about = evidence.make(run.folder, content, run.data, found, model.mask_stride)
    title = title_of(path, content, val.name)
    grid = prediction_grid(shown, drawn, threshold, title=title)
    files.save_image(run.folder / "predictions.png", grid)
    summary.write(run.folder)
    write_page(run, about, val)
    info(table(Scores(**content["scores"])))
    info(summary.about_best(content))
    info(f"predictions.png shows scores above {threshold:.3f} ({origin})")
    if text := draw.class_numbers(val.class_names):
        info(text)
    for each in about["warnings"]:
        info(f"{each['what']}: {each['why']} {each['do']}")
    if run.grid:
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in run.grid.items())
        info(f"ground truth through the mask grid and back: {numbers}")
    info(f"\nrun folder      {run.folder}\n{summary.contents(run.folder)}")
    commands.show_next(commands.after_training(path, run.opts))


sys.modules[__name__].__class__ = Command

if __name__ == "__main__":
    options.run_entry(main)
