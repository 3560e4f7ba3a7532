"""Why the AP of a run is low, or cannot be trusted, from its folder, its evidence and its data.

Each check gives one warning or none: its title, the numbers that show it, and the next step. The
limits are our choice, so that healthy runs on VOC, nuclei and the demo set have no warning.
"""

from collections.abc import Callable, Sequence

import numpy as np

from data.errors import counted
from engine import options, recipes
from engine.report import data_warnings
from engine.report.run_facts import RunFacts, evaluated_split, sentence, warning

LOW_AP = 0.1  # of a run that learned next to nothing
LOW_TRAIN_AP = 0.2
WIDE_GAP = 0.15  # between train AP and val AP, if val AP is also below two thirds of train AP
SPIKE, LARGE_SPIKE = 1.5, 3.0  # of the loss, over the first one; the second whatever AP is
FALL = 0.9  # of the first loss: one that ends above has not fallen
RISE = 3.0  # of the last losses, over the lowest one
HIGH_RATE = 5.0  # a learning rate over that of its recipe
LOW_RECALL = 0.3  # at the threshold, if twice as many objects have a right mask
FEW_ROWS = 5  # of the log, which show no course yet


def warnings_of(run: RunFacts) -> list[dict[str, str]]:
    """All warnings, what explains most first: "what", "why", "do", and "level", "error" where
    numbers cannot be trusted or nothing was learned, else "warning".
    """
    found = {check.__name__: check(run) for check in CHECKS}
    explained = any(
        found[name] for name in ("rate_too_high", "names_permuted", "unlearned_classes")
    )
    for name in ("low_train_ap", "wide_gap", "low_recall"):
        if explained:  # they follow from it
            found[name] = None
    return [each for each in found.values() if each]


def rate_too_high(run: RunFacts) -> dict | None:
    """A run that learned next to nothing while its loss spiked or did not fall, or whose learning
    rate is far above that of its recipe.
    """
    on_train, val = run.last_ap("train"), run.last_ap("val")
    ap = val if on_train is None else on_train
    rows = [row for row in run.log if "loss" in row]
    if not rows or (run.metrics and ap is None):
        return None
    losses = np.array([row["loss"] for row in rows])
    first, lowest, peak = losses[0], losses.min(), int(losses.argmax())
    if (ap or 0) > 2 * LOW_AP and losses[peak] <= LARGE_SPIKE * first:
        return None
    end = float(np.median(losses[-max(1, len(losses) // 5) :]))
    rate, usual = run.options.get("lr", 0), usual_rate(run.options)
    signs = []
    if losses[peak] > SPIKE * first:
        signs.append(
            f"the loss rose from {first:.3g} to {losses[peak]:.3g} at iteration "
            f"{rows[peak]['iteration']} and was {end:.3g} at the end"
        )
    elif len(losses) > FEW_ROWS and (ap or 0) <= LOW_AP:
        if end > FALL * first:
            signs.append(f"the loss did not fall: {first:.3g} at first, {end:.3g} at the end")
        elif end > RISE * lowest:
            signs.append(f"the loss fell to {lowest:.3g} and rose again to {end:.3g}")
    if skipped := rows[-1].get("skipped"):
        signs.append(f"{counted(skipped, 'step')} had a loss or gradient that was not finite")
    high = usual and rate > HIGH_RATE * usual
    if not signs and not high:
        return None
    if high:
        signs.append(f"--lr is {rate:g}, {rate / usual:.3g} times that of the recipe ({usual:g})")
    if run.metrics:
        signs.append(f"AP is {ap:.3f}" + " on training images" * (on_train is not None))
    else:
        signs.append("it ended before its first evaluation")
    target = usual if high else rate / 10
    return warning(
        "error", "The learning rate is too high", sentence("; ".join(signs)),
        f"Train again with --lr {target:g}.",
    )  # fmt: skip


def usual_rate(opts: dict) -> float | None:
    """The learning rate of the recipe of a run, or the default, if the user gave another one."""
    if opts.get("origins", {}).get("lr") != "user":
        return None
    default = options.TrainOptions.__dataclass_fields__["lr"].default
    return recipes.RECIPES.get(opts.get("recipe"), {}).get("lr", default)


def random_start(run: RunFacts) -> dict | None:
    """Weights that were not loaded, or in part, where AP is low."""
    ap = run.last_ap("val")
    if ap is None or ap > 3 * LOW_AP or run.options.get("overfit"):
        return None
    if not run.options.get("pretrained"):
        return warning(
            "warning", "The network started from random values",
            f"No weights were loaded, and AP is {ap:.3f}. On hundreds of images, weights from "
            "ImageNet make AP several times higher.",
            "bash sbin/get_weights.sh fetches some; train again with --pretrained FILE.",
        )  # fmt: skip
    if run.weights and run.weights.get("whole") is False:
        return warning(
            "warning", "The weights were loaded in part",
            sentence(str(run.weights.get("headline", run.options["pretrained"]))),
            "Give weights of the same model with --pretrained; weights.json lists what is missing.",
        )  # fmt: skip
    return None


def low_recall(run: RunFacts) -> dict | None:
    """A threshold that hides most of what is found."""
    if "diagnosis" not in run.evidence:
        return None
    found = sum(row["found"] for row in run.evidence["per_image"])
    objects = sum(row["objects"] for row in run.evidence["per_image"])
    masks = run.evidence["diagnosis"]["recall"]["all"]["all"]["recall50"]
    recall = found / max(1, objects)
    if not objects or recall >= LOW_RECALL or masks < 2 * recall or masks < LOW_RECALL:
        return None
    return warning(
        "warning", "Few objects are found above the score threshold",
        f"At the threshold {run.evidence['threshold']:.3f}, {recall:.0%} of the objects are found, "
        f"while {masks:.0%} have a right mask with some class and score: masks are learned before "
        "classes and scores are.",
        "Train longer (--epochs); a lower --threshold shows more, with more mistakes.",
    )  # fmt: skip


def low_train_ap(run: RunFacts) -> dict | None:
    train = run.last_ap("train")
    if train is None or train >= LOW_TRAIN_AP:
        return None
    return warning(
        "warning", "The training images are not fitted yet",
        f"Train AP is {train:.3f}: the weights do not fit the training images yet.",
        "Train longer (--epochs), try another --lr, or a larger --image-size if objects are small.",
    )  # fmt: skip


def wide_gap(run: RunFacts) -> dict | None:
    train, val = run.last_ap("train"), run.last_ap("val")
    if None in (train, val) or train - val <= WIDE_GAP or val >= 2 / 3 * train:
        return None
    if train < LOW_TRAIN_AP:
        return None
    return warning(
        "warning", "The weights overfit",
        f"Train AP {train:.3f} is far above {evaluated_split(run.metrics)} AP {val:.3f}.",
        "More training images or stronger augmentation (--copy-paste, --scale, --colour) help more "
        "than longer training. Look also whether train and val are of the same kind.",
    )  # fmt: skip


CHECKS: Sequence[Callable[[RunFacts], dict | None]] = (
    rate_too_high,
    data_warnings.names_permuted,
    data_warnings.leaked_images,
    data_warnings.evaluated_on_train,
    data_warnings.unlearned_classes,
    random_start,
    data_warnings.too_few_queries,
    data_warnings.coarse_masks,
    low_train_ap,
    wide_gap,
    low_recall,
    data_warnings.unscored_classes,
    data_warnings.few_objects,
)
