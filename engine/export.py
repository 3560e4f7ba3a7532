"""Entry: exports a checkpoint to other runtimes, and compares the results on real images.

A file whose results differ is kept as NAME.failed, with exit code 3.
"""

import argparse
import functools
import json
import shlex
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

import mobileinst
from data.dataset import CocoDataset
from data.errors import InputError
from data.images import read_rgb
from data.loaders import filled, spread, train_canvases
from data.presets import CanvasPreset, Size
from engine import backends, checkpoint, evaluate, files, inputs, options, parity, values, web_page
from engine.coco_ap import score
from engine.commands import command, show_next
from engine.datasets import open_split
from engine.exported import decode
from engine.graphs import FORMATS, FP16, ONNX, Format, int8
from engine.log import info
from engine.loop import coco_results
from engine.parity import MIN_DETECTIONS, MIN_IMAGES, Comparison, Detections
from engine.report import draw
from engine.report.tables import aligned, number, pipes
from engine.tiles import unannotated
from mobileinst import weights, zoo
from mobileinst.deploy import deploy, fold_batchnorms, graph_postprocess

EXPORTS = Path("exports")
MARK = backends.METADATA  # of a folder that --overwrite may replace
HOW = ("decode.py", "decode.js", "DECODE.md")  # how the files are used
RESIZE = "fit, top left, bilinear with antialiasing, half-pixel centres"
CALIBRATION = 32  # images
INT8_NOTE = [
    "`int8.csv` has what int8 in each part alone does to the masks and scores of images that the "
    "ranges were measured on; parts with a low median stayed in float."
]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Export a checkpoint to ONNX or ExecuTorch and compare the detections.")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of the newest run if not given")
    parser.add_argument(
        "--format", type=formats, default="onnx", metavar="NAME,...",
        help=f"files to write, of {', '.join(FORMATS)}",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=values.canvas, metavar="HxW",
        help="size of the input, multiples of 64; the canvas of the training that fits most "
        "validation images if not given",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, help="folder to compare on; the run's validation set if not given"
    )
    parser.add_argument("--data", type=Path, help="where the data set of the run is now")
    help = "images to compare on, spread evenly"
    parser.add_argument("--count", type=values.positive, default=100, help=help)
    help = "keep files whose detections differ or are few"
    parser.add_argument("--allow-mismatch", action="store_true", help=help)
    parser.add_argument("--fp16", action="store_true", help="also model.fp16.onnx")
    parser.add_argument(
        "--int8", action="store_true",
        help="also model.int8.onnx, with ranges from images of the training set or of --images",
    )  # fmt: skip
    parser.add_argument("--web", action="store_true", help="also a page that runs model.onnx")
    parser.add_argument(
        "--web-runtime", type=Path, metavar="DIR",
        help="the npm package onnxruntime-web; fetched with npm if not given",
    )  # fmt: skip
    options.add_out(parser, f"folder; {EXPORTS}/RUN-HxW if not given")
    options.add_option(
        parser, "threads", default=values.default_threads(), help="threads of each runtime"
    )
    opts = parser.parse_args(argv)
    if backends.is_exported(opts.out):
        parser.error(f"--out {opts.out}: name a folder; the files in it have fixed names")
    if opts.web and "onnx" not in opts.format:
        parser.error("--web runs model.onnx: add onnx to --format")
    return opts


def formats(text: str) -> tuple[str, ...]:
    """Names of formats, separated by commas."""
    if "litert" in text.split(","):
        raise argparse.ArgumentTypeError(
            "litert: no LiteRT converter installs beside this torch; export onnx-plain here and "
            "convert model.plain.onnx with onnx2tf in an environment of its own"
        )
    return values.some_of(tuple(FORMATS))(text)


class Images:
    """The images of the comparison; `dataset` is None without annotations."""

    def __init__(self, opts: argparse.Namespace, path: Path, content: checkpoint.Fields) -> None:
        self.opts, self.path, self.content = opts, path, content
        self.dataset: CocoDataset | None = None
        if opts.images:
            if not opts.images.is_dir():
                raise InputError(f"--images {opts.images}: name a folder of images")
            paths = list(inputs.images_of([opts.images])[0].values())
            chosen = (paths[place] for place in spread(len(paths), opts.count))
            self.read = [lambda path=path: unannotated(read_rgb(path)) for path in chosen]
        else:
            dataset = self.open("val")
            self.dataset = dataset.subset(spread(len(dataset), opts.count))
            places = range(len(self.dataset))
            self.read = [functools.partial(self.dataset.read, place) for place in places]

    def open(self, split: str) -> CocoDataset:
        """A split of the run's data set; raises InputError if it cannot be used."""
        arguments = ["--split", split, *(["--data", str(self.opts.data)] * bool(self.opts.data))]
        try:
            dataset = open_split(evaluate.parse(arguments), (self.path, self.content))
        except InputError as error:
            raise InputError(
                f"no images to compare on, the data of the run cannot be used: {error}; or name a "
                "folder with --images"
            ) from error
        dataset.use_classes(self.content["classes"], str(self.path))
        return dataset

    def calibration(self, meta: dict) -> list[np.ndarray]:
        """Inputs uint8 [1,H,W,3] for int8: of the training set, or of the folder of the user."""
        read = self.read
        if self.dataset is not None:
            train = self.open("train")
            places = spread(len(train), CALIBRATION)
            read = [functools.partial(train.read, place) for place in places]
        chosen = (read[place] for place in spread(len(read), CALIBRATION))
        return [decode.prepare(each()[0], meta)[0] for each in chosen]

    def canvas(self) -> Size:
        """The canvas of the training that most images fill best, or its first. If the training had
        smaller ones than evaluation, to save time, those of evaluation.
        """
        size, canvases = (self.content["options"][name] for name in ("image_size", "canvas"))
        if not canvases or min(map(min, canvases)) < size:
            canvases = train_canvases(size)
        if self.dataset is None:
            return tuple(canvases[0])
        ratios = [each.width / each.height for each in self.dataset.images]
        return tuple(canvases[np.bincount(filled(canvases, ratios).argmax(0)).argmax()])

    def scores(self, detections: Detections, limit: int) -> dict[str, float] | None:
        """AP and AP50, where there are annotations."""
        if self.dataset is None:
            return None
        truth = self.dataset.ground_truth()
        categories = [category.id for category in self.dataset.categories]
        images = [image["id"] for image in truth["images"]]
        found = coco_results(images, detections.results, categories)
        return score(truth, found, max_dets=limit).headline


def main(argv: list[str], builder: checkpoint.Builder = zoo.build_from_config) -> None:
    """`builder` rebuilds a model with parts that are not in the zoo.

    Raises:
        FailedRun: at the end, if the results of a file differ.
    """
    opts = parse(argv)
    for name in opts.format:
        backends.require_packages(FORMATS[name].packages, f"--format {name}")
    for name in ("fp16", "int8"):
        if getattr(opts, name):
            backends.require_packages(ONNX, f"--{name}")
    torch.set_num_threads(opts.threads)
    if backends.is_exported(opts.checkpoint):
        raise InputError(f"{opts.checkpoint} is exported already; name a best.pt or last.pt")
    path, content = checkpoint.load_or_newest(opts.checkpoint, options.RUNS)
    model, _, postprocess = checkpoint.build(content, builder)
    threshold, _ = checkpoint.score_threshold(content["best"])
    images = Images(opts, path, content)
    height, width = size = opts.size or images.canvas()
    out = opts.out or EXPORTS / f"{path.parent.name}-{height}x{width}"
    files.require_free(out, opts.overwrite, MARK)
    try:
        deployed = deploy(model, postprocess, size)
    except ValueError as error:
        raise InputError(f"{path} cannot be exported: {error}; change this part") from error
    info(f"{path} for {height}x{width}, compared on {len(images.read)} images")
    preset, limit = CanvasPreset(size), postprocess.max_detections
    rules = graph_postprocess(postprocess)
    reference = parity.run(fold_batchnorms(model), rules, preset, images.read, "checkpoint")
    too_few = require_enough(reference, threshold, opts.allow_mismatch)
    meta = {
        "format": backends.FORMAT,
        "model": content["options"]["model"],
        "config": content["config"],
        "categories": content["classes"],
        "height": height,
        "width": width,
        "pad_colour": [255 * mean for mean in model.normalise.mean.flatten().tolist()],
        "resize": RESIZE,
        "mask_stride": model.mask_stride,
        "tiles": content["options"]["tiles"],
        "threshold": threshold,
        "duplicate_iou": postprocess.duplicate_iou,
        "fingerprint": weights.fingerprint(model.state_dict()),
        "versions": {"torch": str(torch.__version__), "mobileinst": mobileinst.__version__},
        "files": {},
    }
    chosen = [FORMATS[name] for name in opts.format] + opts.fp16 * [FP16]
    if opts.int8:
        chosen.append(int8(functools.partial(images.calibration, meta), threshold))
    rows, found, failed = [row("checkpoint", path, reference, images, limit)], {}, []
    runtime = web_page.runtime(opts.web_runtime) if opts.web else nullcontext()
    with runtime as package, files.atomic_folder(out, opts.overwrite, MARK) as folder:
        for each in chosen:
            file = folder / each.name
            write(each, deployed, file, meta)
            loaded = backends.open_exported(file)
            detections = parity.run(
                loaded.model, loaded.postprocess, preset, images.read, each.name
            )
            found[each.name] = detections
            compared = parity.compare(reference, detections, threshold, each.limits.score)
            rows.append(row(each.name, file, detections, images, limit, compared, each))
            lost = (rows[0]["AP"] or 0) - (rows[-1]["AP"] or 0)
            rows[-1]["same"] &= lost <= each.limits.ap
            about = {"input": each.input, "outputs": ["scores", "masks"], "parity": rows[-1]}
            meta["files"][each.name] = about
            if not rows[-1]["same"]:
                failed.append(each.name)
        kept = [name for name in meta["files"] if opts.allow_mismatch or name not in failed]
        meta["files"] = {name: meta["files"][name] for name in kept}
        finish(folder, meta, rows, [name for name in found if name not in kept], too_few)
        example(folder, {"checkpoint": reference} | found, images, threshold, content["classes"])
        if opts.web and "model.onnx" in kept:
            web_page.write(folder / "web", folder, package)
    info(f"\n{aligned(cells(rows), 1)}\n")
    if dropped := [name for name in failed if name not in kept]:
        raise files.FailedRun(
            f"{', '.join(dropped)} in {out}: detections differ from those of the checkpoint, see "
            "the table; the file is kept as NAME.failed, use it with --allow-mismatch"
        )
    info(f"exported: {out} (summary.md, example.png; decode.py shows how to use the files)")
    if opts.web:
        where = shlex.quote(str(out / "web"))
        info(f"page: python -m http.server --directory {where}, then open localhost:8000")
    if kept:
        show_next({"use it": command("predict", "IMAGES", "--checkpoint", out / kept[0])})


def require_enough(reference: Detections, threshold: float, allow: bool) -> list[str]:
    """Raises InputError if there is not enough to compare, or with `allow` returns a warning."""
    images, detections = len(reference.results), sum(map(len, reference.above(threshold)))
    if images >= MIN_IMAGES and detections >= MIN_DETECTIONS:
        return []
    sentence = (
        f"{detections} detections above {threshold:.3f} in {images} images are too few to compare, "
        f"at least {MIN_DETECTIONS} in {MIN_IMAGES} are needed"
    )
    if not allow:
        fix = "raise --count, name more images with --images, or add --allow-mismatch"
        raise InputError(f"{sentence}; {fix}")
    info(f"warning: {sentence}")
    return [f"**{sentence}.**"]


def write(each: Format, deployed: torch.nn.Module, file: Path, meta: dict) -> None:
    """Writes a file with the metadata that are known before the comparison."""
    info(f"writing {file.name}")
    try:
        each.write(deployed, file)
    except InputError:
        raise
    except Exception as error:  # exporters raise nearly everything
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{file.name}: its exporter cannot write this model ({reason}); choose another --format"
        ) from error
    write_metadata(file.parent, meta, [file.name])


def write_metadata(folder: Path, meta: dict, names: Sequence[str]) -> None:
    """The metadata beside the files of these names, and inside those that are ONNX."""
    text = json.dumps(backends.signed(meta), indent=1)
    (folder / backends.METADATA).write_text(text, encoding="utf-8")
    for name in names:
        if name.endswith(".onnx"):
            import onnx

            content = onnx.load(folder / name)
            onnx.helper.set_model_props(content, {backends.KEY: text})
            onnx.save(content, folder / name)


def row(
    name: str,
    file: Path,
    detections: Detections,
    images: Images,
    limit: int,
    compared: Comparison | None = None,
    each: Format | None = None,
) -> dict:
    """A line of the table of parity."""
    scores = images.scores(detections, limit)
    return {
        "file": name,
        "megabytes": round(file.stat().st_size / 1e6, 2),
        "cpu_ms": round(1000 * detections.seconds, 1),
        "images": len(detections.results),
        **(asdict(compared) if compared else dict.fromkeys(one.name for one in fields(Comparison))),
        "AP": scores["AP"] if scores else None,
        "AP50": scores["AP50"] if scores else None,
        "same": compared.within(each.limits) if compared else None,
    }


def cells(rows: list[dict]) -> list[list[str]]:
    """The rows as text, under a header."""

    def text(name: str, value: object) -> str:
        if value is None:
            return "-"
        if name == "score_difference":
            return f"{value:.1e}"
        if name.startswith("mask_iou"):
            return f"{value:.4f}"
        if name in ("AP", "AP50"):
            return number(value)
        return {True: "yes", False: "NO"}[value] if name == "same" else str(value)

    header = [name.replace("_", " ") for name in rows[0]]
    return [header, *([text(*item) for item in each.items()] for each in rows)]


def finish(
    folder: Path, meta: dict, rows: list[dict], failed: Sequence[str], notes: Sequence[str]
) -> None:
    """Metadata with parity, the tables with notes, and how to use the files."""
    for name in failed:
        (folder / name).rename(folder / f"{name}.failed")
    for name in meta["files"]:
        if not name.endswith(".onnx"):
            meta["files"][name]["sha256"] = files.sha256(folder / name)
    write_metadata(folder, meta, list(meta["files"]))
    table = [rows[0].keys(), *(each.values() for each in rows)]
    files.write_csv(folder / "parity.csv", table, "choose another --out")
    classes = ", ".join(each["name"] for each in meta["categories"])
    lines = [
        f"# {meta['model']} for images of {meta['height']} x {meta['width']}",
        f"{len(meta['categories'])} classes: {classes}. Detections are shown above a score of "
        f"{meta['threshold']:.3f}.",
        pipes(cells(rows), 1),
        *notes,
        "Each file was opened again and compared with the checkpoint on the same images, the same "
        "canvas and the detections of the same queries. Those with scores as near to the threshold "
        "as scores may differ do not count. CPU time is that of the network alone, the median over "
        "images.",
        "`example.png` shows the same image through all of them; `python decode.py "
        "example_image.png` finds the same objects with onnxruntime, numpy and Pillow. `DECODE.md` "
        "has the arithmetic for other languages, `model.json` the classes and numbers.",
        *INT8_NOTE * ("model.int8.onnx" in meta["files"]),
    ]
    (folder / "summary.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    for name in HOW:
        shutil.copyfile(web_page.EXPORTED / name, folder / name)


def example(
    folder: Path,
    found: dict[str, Detections],
    images: Images,
    threshold: float,
    classes: list[dict],
) -> None:
    """Draws the image with the most detections through the checkpoint and every file."""
    counts = [len(each) for each in found["checkpoint"].above(threshold)]
    place = counts.index(max(counts))
    image, _ = images.read[place]()
    image.save(folder / "example_image.png")
    names, examples = [each["name"] for each in classes], []
    for name, detections in found.items():
        result = detections.results[place]
        shown = (result["best"] & (result["scores"] > threshold)).nonzero()[:, 0]
        shown = shown[result["query_idx"][shown].argsort()]  # so files have the same colours
        labels, scores = (result[key][shown].tolist() for key in ("labels", "scores"))
        objects = draw.Objects(labels, [result["masks"][i] for i in shown], scores)
        examples.append(draw.Example(image, predictions=objects, caption=name))
    grid = draw.grid(examples, names, columns=len(examples), threshold=threshold)
    grid.save(folder / "example.png")


if __name__ == "__main__":
    options.run_entry(main)
