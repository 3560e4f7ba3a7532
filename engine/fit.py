"""Option values that follow from the training set: what a user would set after reading a manual.

Only values that neither the user nor a checkpoint to start from gave are changed, each with a
reason that is printed and kept.
The rules are our choice, from the ground truth passed through the mask grid and back: an object
needs about four cells of a side, and a model needs a query per object and some to spare.
"""

import math

import numpy as np

from data import rle
from data.dataset import CocoDataset
from data.errors import counted
from data.loaders import first_images, train_canvases
from engine import options, recipes, tiles
from engine.log import info
from engine.options import TrainOptions
from mobileinst import zoo

SAMPLE = 200  # images whose objects are measured
SPARE = 1.25  # queries and detections per object in the fullest image
# Objects crowd, so that several lie in a cell of placed queries. On nuclei (dsb2018), after 400
# steps, 324 queries found .354 of them for .282 with 121: AR100; AP .178 for .167.
PLACED_SPARE = 2.25
# Pixels that the side of a small object should have; at stride 8 three cells, below which masks
# need stride 4. From random values half of them, as small images bring more steps in the same time.
SIDE, COARSE_SIDE = 16, 24
SIZES = (128, 192, 256, 320, 384, 448, 512)
# Small objects alone, as nuclei: windows show them larger, at the cost of small images.
TILES = (2, 3)
# Of masks at stride 4. Nuclei, 400 steps: .306 / .600 at 0.45, .279 / .571 at 0.55, .193 / .485 at
# 0.65.
FINE_THRESHOLD = 0.45
SEEN = 25  # training images that are scored then
LARGEST_ZOOM = 2  # more pixels than the files have help the grid of the masks, up to here
# Of the shortest useful training at 256 pixels with batches of four; larger images take more time
# each and get fewer, smaller batches get more, for the same number of images.
# Penn-Fudan (100 images), Mask2Former with EfficientNet-Lite0: AP .556 after 1125 of 2250, .590 at
# the end. Where steps are what is missing, training images are no larger than that, unless the
# objects are small, as at 320 it was behind; its evaluation at 320 had .615.
STEPS, BATCH, SMALL_SIZE = 2200, 4, 256
# Power by which smaller batches need more steps. Penn-Fudan in batches of two: .644 and .654 after
# 3492 and 3700 steps; 4400, twice 2200, gave .642 to .665 and took longer.
MORE = 2 / 3
EVALUATIONS, IN_WINDOWS = 6, 3


def fit_to_data(opts: TrainOptions, train: CocoDataset) -> dict[str, str]:
    """Changes options that neither the user nor a fixed recipe chose; option -> reason.

    Keywords of the model are named `set.KEY`, as in `opts.origins`.
    """
    reasons = {}
    keywords = zoo.config_for(opts.model, **opts.set).to_dict()

    def is_free(name: str) -> bool:
        return opts.origins.get(name) not in ("user", "weights", "run")

    def decide(name: str, value: object, reason: str) -> None:
        if not is_free(name):
            return
        if name.startswith("set."):
            opts.set[name.removeprefix("set.")] = value
        else:
            setattr(opts, name, value)
        opts.origins[name], reasons[name] = "data", reason

    objects = train.objects_per_image()
    most = int(objects.max(initial=0))
    spare = {"num_queries": SPARE, "max_detections": SPARE}
    if keywords.get("placed"):
        spare["num_queries"] = PLACED_SPARE
    for name, factor in spare.items():
        enough = min(1024, math.ceil(math.sqrt(factor * most)) ** 2)  # a square grid, if placed
        if enough > keywords[name]:
            decide(f"set.{name}", enough, f"up to {most} objects in an image")
    batch = opts.images_per_step
    per_epoch, shortest = len(train) / batch, STEPS * max(1, BATCH / batch) ** MORE  # steps

    sides, short = object_sides(train, first_images(len(train), opts.seed, SAMPLE))
    largest = max((size for size in SIZES if size <= LARGEST_ZOOM * short), default=SIZES[0])
    if short and not opts.canvas and largest < opts.image_size:
        decide("image_size", largest, f"images of {short:.0f} pixels on the short side")
    smaller = opts.image_size
    if is_free("image_size"):
        smaller = min(smaller, SMALL_SIZE)
    few = recipes.RECIPES[opts.recipe]["epochs"] * per_epoch < shortest and not opts.canvas
    trained = smaller if few else opts.image_size
    if len(sides) and not opts.canvas:
        small, large = np.quantile(sides, (0.25, 0.9)).tolist()  # of the short side of the image
        part = 0.5 if opts.from_scratch else 1
        side, coarse_side = part * SIDE, part * COARSE_SIDE

        def under(size: int) -> str:
            return f"a quarter of the objects is under {small * size:.0f} pixels at {size}"

        numbers = [n for n in TILES if n * tiles.SMALLEST <= short]
        if small * smaller < side and large < tiles.OVERLAP and numbers and is_free("tiles"):
            enough = (n for n in numbers if tiles.zoom(n) * small * smaller >= coarse_side)
            number = next(enough, numbers[-1])
            decide(
                "tiles", number, f"{under(smaller)}, nine tenths are under {large * smaller:.0f}"
            )
        zoom = tiles.zoom(opts.tiles) if opts.tiles > 1 else 1
        if opts.tiles > 1:
            reason = f"windows enlarge objects {zoom:g} times"
            if smaller < opts.image_size:
                decide("image_size", smaller, reason)
            trained = smaller
            highest = max(opts.scale[1], round(1.2 * zoom, 2))
            decide("scale", (opts.scale[0], highest), reason)
            decide("eval_train", min(opts.eval_train, SEEN), "each takes a pass for every window")
        elif small * trained < side:
            size = next((size for size in SIZES if size * small >= side), SIZES[-1])
            size = min(size, largest)
            if size > opts.image_size:
                decide("image_size", size, under(opts.image_size))
            trained = opts.image_size
        pixels = zoom * small * trained
        if keywords.get("mask_stride") == 8 and pixels < coarse_side:
            reason = f"a quarter of the objects is under {pixels:.0f} pixels"
            decide("set.mask_stride", 4, reason + " in windows" * (opts.tiles > 1))
    stride = opts.set.get("mask_stride", keywords.get("mask_stride"))
    if stride == 4 and keywords["mask_threshold"] > FINE_THRESHOLD:
        decide("set.mask_threshold", FINE_THRESHOLD, "masks at stride 4")
    if trained < opts.image_size:
        reason = f"{len(train)} images: steps count more than pixels"
        decide("canvas", train_canvases(trained), reason)
    trained = min(opts.canvas[0]) if opts.canvas else opts.image_size
    steps = round(shortest * min(1, SMALL_SIZE / trained))
    if opts.epochs and is_free("epochs") and opts.epochs * per_epoch < steps:
        epochs = math.ceil(steps / per_epoch)
        decide("epochs", float(epochs), f"{len(train)} images: {steps} steps")
        decide("eval_every", float(max(1, epochs // EVALUATIONS)), "follows from the epochs")
    if opts.epochs and opts.tiles > 1:
        decide("eval_every", max(1.0, opts.epochs // IN_WINDOWS), "windows take time")
    return reasons


def report_full_images(opts: TrainOptions, sets: dict[str, CocoDataset]) -> None:
    """Prints how many objects are beyond the model's queries, of which each finds one, and beyond
    the detections per image in evaluation.
    """
    config = options.model_config(opts, num_classes=1)
    queries, detections = config.num_queries, config.max_detections
    lost = "have no query and are not learned; raise it with --set num_queries"
    missed = "cannot be found in evaluation; raise it with --set"
    texts = [too_many_objects(sets["train"], queries, "queries of the model", lost)]
    if sets["val"] is not sets["train"] and queries < detections:
        what = "queries of the model", f"{missed} num_queries"
        texts.append(too_many_objects(sets["val"], queries, *what))
    texts.append(
        too_many_objects(
            sets["val"], detections, "detections per image", f"{missed} max_detections"
        )
    )
    for text in filter(None, texts):
        info(text)


def too_many_objects(data: CocoDataset, most: int, what: str, effect: str) -> str:
    """A sentence for the user if images have more objects than `what`, of which there are `most`;
    "" if none has. `effect` is what happens to the others, and the option that changes it.
    """
    objects = data.objects_per_image()
    full = int((objects > most).sum())
    if not full:
        return ""
    over = int((objects - most).clip(0).sum())
    return (
        f"{data.name}: {counted(full, 'image')} of {len(data)} with more objects (up to "
        f"{objects.max()}) than the {most} {what}: "
        f"{counted(over, 'object')} {effect}={objects.max()}"
    )


def object_sides(train: CocoDataset, indices: list[int]) -> tuple[np.ndarray, float]:
    """Square roots of the objects' areas over the short sides of their images, in these images;
    and the median short side in pixels.
    """
    sides, shorts = [np.zeros(0)], [0]
    for index in indices:
        annotation = train.annotation(index)
        shorts.append(min(annotation.orig_size))
        sides.append(np.sqrt(rle.area(annotation.rles)) / shorts[-1])
    return np.concatenate(sides), float(np.median(shorts[1:] or [0]))
