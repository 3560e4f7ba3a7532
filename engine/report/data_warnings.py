"""Checks of the data of a run: each gives a warning or none."""

import numpy as np

from data.errors import counted, first_of
from data.loaders import spread
from data.near_duplicates import grey_images, near_duplicates
from engine import tiles
from engine.coco_ap import NOTHING
from engine.fit import SAMPLE, object_sides, too_many_objects
from engine.report.run_facts import RunFacts, sentence, warning

SURE = 0.6  # least share of a class that is called another one
RARELY = 0.2  # share that is called right in val, of a class that is known in train
FEW = 5  # objects that show nothing yet
RARE = 0.25  # objects per image of a class in train over those in val
LEAKED = 0.01  # share of val that is also in train
COMPARED = 20_000  # training images, at most
MOST_BEYOND = 0.01  # share of objects beyond the queries
COARSE, MOST_COARSE = 2.0, 0.25  # cells of the mask grid along an object, share of smaller ones


def names_permuted(run: RunFacts) -> dict | None:
    """Classes whose masks are right in val but nearly always called another class, and which are
    called right on training images: their names or ids differ between the two.
    """
    if run.named is None:
        return None
    size = len(run.names)
    val = run.named[:size, :size]
    number = val.sum(1)
    right = np.diag(val) / np.maximum(number, 1)
    called = np.where(np.eye(size, dtype=bool), 0, val).argmax(1)
    share = val[np.arange(size), called] / np.maximum(number, 1)
    wrong = (number >= FEW) & (share >= SURE) & (right <= RARELY)
    known = np.full(size, np.nan)
    if run.named_in_train is not None:
        train = run.named_in_train[:size, :size]
        seen = train.sum(1)
        known = np.where(seen >= FEW, np.diag(train) / np.maximum(seen, 1), np.nan)
        wrong &= ~(known < SURE)
    rows = np.flatnonzero(wrong)
    alone = np.bincount(called[rows], minlength=size)[called[rows]] == 1  # one class each
    rows = rows[alone]
    if not len(rows) or (len(rows) == 1 and not known[rows[0]] >= SURE):
        return None
    parts = [
        f"{val[i, called[i]]} of {number[i]} {run.names[i]} are called {run.names[called[i]]}"
        for i in rows.tolist()
    ]
    on_train = known[rows][np.isfinite(known[rows])]
    trained = (
        f"; on training images {on_train.mean():.0%} of them are right" if len(on_train) else ""
    )
    oracle = run.evidence["diagnosis"]["oracles"]["right class"]["AP"]
    ap = run.evidence["headline"]["mask"]["AP"]
    return warning(
        "error", "Class names differ between train and val",
        sentence(
            f"on val, masks are right but their classes are not, at any score: {first_of(parts)}"
            f"{trained}. With the right classes AP would be {oracle:.3f}, not {ap:.3f}"
        ),
        "Compare the class names and ids of both annotation files. The images of val and of the "
        "training batch show which side has wrong names, as does bash sbin/check_data.sh "
        f"{run.data}. "
        "Where val was wrong, evaluate again with sbin/test.sh; where train was, train again.",
    )  # fmt: skip


def leaked_images(run: RunFacts) -> dict | None:
    """Images of val that are in train as well."""
    if not run.parts or run.evidence["split"] != "val":
        return None
    train, val = run.parts.train, run.parts.val
    chosen = spread(len(train), COMPARED)
    images = [grey_images([one.path(i) for i in which]) for one, which in
              ((val, range(len(val))), (train, chosen))]  # fmt: skip
    pairs = near_duplicates(*images)
    if len(pairs) < LEAKED * len(val) or not pairs:
        return None
    named = [(val.images[i].file_name, train.images[chosen[j]].file_name) for i, j in pairs.items()]
    shown = first_of([f"{ours} is {theirs}" for ours, theirs in named])
    leaked = [row["score"] for row in run.evidence["per_image"] if row["index"] in pairs]
    others = [row["score"] for row in run.evidence["per_image"] if row["index"] not in pairs]
    compared = f", of {len(chosen):,} compared" if len(chosen) < len(train) else ""
    scores = ""
    if leaked and others and np.mean(leaked) > np.mean(others):
        scores = (
            f" The mean panoptic quality is {np.mean(leaked):.2f} on them and "
            f"{np.mean(others):.2f} on the other {len(others)}."
        )
    return warning(
        "error", "Images of val are also in train",
        f"{len(pairs)} of {len(val)} images of val are nearly the same as training images{compared}"
        f": {shown}. AP on images that were trained on is higher than on new ones.{scores}",
        "Leave each image in one of the two, and train again; evidence.json lists all pairs.",
    ) | {"images": named}  # fmt: skip


def evaluated_on_train(run: RunFacts) -> dict | None:
    """A run without a validation set."""
    split = run.evidence.get("split", "")
    if not split.startswith("train-"):
        return None
    return warning(
        "error", "AP is measured on training images",
        f"There is no validation set: all scores are those of {split.removeprefix('train-')} "
        "training images, not of new ones.",
        "Train again with --val-fraction 0.2.",
    )  # fmt: skip


def unlearned_classes(run: RunFacts) -> dict | None:
    """Classes with objects in val but none, or hardly any, in train; and those of val that train
    has no name for.
    """
    if not run.parts or run.evidence["split"] != "val":
        return None
    train, val = run.parts.train, run.parts.val
    ratio = len(train) / max(1, len(val))
    parts = []
    for row in run.evidence["classes"]:
        number, trained = row["objects"], row["train_objects"]
        expected = number * ratio
        rare = expected >= 2 * FEW and trained < RARE * expected and number >= FEW
        if number and (not trained or rare):
            ap = "" if row["AP"] == NOTHING else f", AP {row['AP']:.3f}"
            parts.append(
                f"train has {counted(trained, 'object')} of {row['name']}, val {number}{ap}"
            )
    parts += [
        f"train has no class {name}, so {counted(number, 'object')} of val do not count"
        for name, number in val.unknown.items()
    ]
    if not parts:
        return None
    ap = run.evidence["headline"]["mask"]["AP"]
    rest = [row["AP"] for row in run.evidence["classes"] if row["train_objects"] and row["AP"] >= 0]
    mean = f". AP is {ap:.3f}, and {np.mean(rest):.3f} over the classes of train" if rest else ""
    return warning(
        "error", "Classes without enough objects in train", sentence(first_of(parts) + mean),
        "Annotate them in train, everywhere they are: objects without an annotation are learned as "
        f"background. bash sbin/check_data.sh {run.data} counts the objects of each class.",
    )  # fmt: skip


def unscored_classes(run: RunFacts) -> dict | None:
    """Classes that train has, and of which val should have objects but has none."""
    if not run.parts or run.evidence["split"] != "val":
        return None
    ratio = len(run.parts.val) / max(1, len(run.parts.train))
    names = [
        f"{row['name']} ({counted(row['train_objects'], 'object')} in train)"
        for row in run.evidence["classes"]
        if not row["objects"] and row["train_objects"] * ratio >= 2 * FEW
    ]
    if not names:
        return None
    return warning(
        "warning", "Classes without objects in val", sentence(f"no score for {first_of(names)}"),
        "Annotate them in val, and evaluate again with sbin/test.sh.",
    )  # fmt: skip


def too_few_queries(run: RunFacts) -> dict | None:
    """Images with more objects than the model has queries."""
    if not run.parts:
        return None
    sets = {id(one): one for one in (run.parts.train, run.parts.val)}.values()
    numbers = np.concatenate([one.objects_per_image() for one in sets])
    if (numbers - run.num_queries).clip(0).sum() <= MOST_BEYOND * numbers.sum():
        return None
    about = run.num_queries, "queries of the model", "have no query; --set num_queries"
    texts = [text for one in sets if (text := too_many_objects(one, *about))]
    return warning(
        "warning", "Images have more objects than the model has queries", f"{'. '.join(texts)}.",
        f"Train again with --set num_queries={numbers.max()}, or cut the images into parts.",
    )  # fmt: skip


def coarse_masks(run: RunFacts) -> dict | None:
    """Objects of val that are smaller than two cells of the mask grid."""
    if not run.parts:
        return None
    val, size, windows = run.parts.val, *(run.options.get(n, 0) for n in ("image_size", "tiles"))
    sides, _ = object_sides(val, spread(len(val), SAMPLE))
    small = sides * size * tiles.zoom(windows) < COARSE * run.mask_stride
    if not len(sides) or small.mean() <= MOST_COARSE:
        return None
    ways = [f"--tiles {windows + 1}", "a larger --image-size"]
    ways += ["--set mask_stride=4"] * (run.mask_stride == 8)
    return warning(
        "warning", "Many objects are smaller than the mask grid",
        f"At --image-size {size}, {small.mean():.0%} of the objects of {val.name} are under "
        f"{COARSE * run.mask_stride:.0f} pixels wide, two cells of the mask grid.",
        f"Train again with {' or '.join(ways)}.",
    )  # fmt: skip


def few_objects(run: RunFacts) -> dict | None:
    """A val set with too few objects."""
    number = run.evidence.get("objects")
    if number is None or number >= 4 * FEW or run.options.get("overfit"):
        return None
    return warning(
        "warning", "Too few objects in val for a reliable AP",
        f"{run.evidence['split']} has {counted(number, 'object')}: one more or less changes AP.",
        "Annotate more images for val, or hold out more with --val-fraction.",
    )  # fmt: skip
