"""Scores as tables: plain text for the terminal, markdown for summary.md."""

from dataclasses import astuple

from engine.coco_ap import METRICS, NOTHING, Scores

Rows = list[list[str]]


def table(scores: Scores) -> str:
    """Plain text; values 0..1, `-` where the ground truth has nothing of the kind."""
    blocks = (
        [count_line(scores)],
        aligned(metric_rows(scores), left=2),
        aligned(class_rows(scores), left=1),
        [threshold_line(scores)],
    )
    return "\n\n".join("\n".join(block) for block in blocks)


def markdown(scores: Scores) -> str:
    """The same as `table`, as markdown."""
    threshold = threshold_line(scores)
    blocks = (
        [count_line(scores) + "."],
        pipes(metric_rows(scores), left=2),
        pipes(class_rows(scores), left=1),
        [threshold[:1].upper() + threshold[1:] + "."],
    )
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def metric_rows(scores: Scores) -> Rows:
    """Header and the 12 numbers; one column per scoring."""
    columns = {"mask": scores.metrics, "box": scores.boxes}
    if scores.void_removed is not None:
        columns = {
            "mask, void removed": scores.void_removed,
            "mask, as COCO": scores.metrics,
            "box": scores.boxes,
        }
    most = scores.max_dets
    meaning = (
        "IoU 0.50:0.95",
        "IoU 0.50",
        "IoU 0.75",
        "small, below 32 x 32",
        "medium",
        "large, above 96 x 96",
        "1 per image",
        f"{min(10, most)} per image",
        f"{most} per image",
        "small",
        "medium",
        "large",
    )
    rows = [["metric", "of", *columns]]
    for key, what in zip(METRICS, meaning, strict=True):
        name = f"AR{most}" if key == "AR100" else key
        rows.append([name, what, *(number(values[key]) for values in columns.values())])
    return rows


def class_rows(scores: Scores) -> Rows:
    rows = [["category", "objects", "AP", "AP50", "AR"]]
    for name, objects, *values in map(astuple, scores.headline_per_class):
        rows.append([name, str(objects), *map(number, values)])
    return rows


def number(value: float) -> str:
    return "-" if value == NOTHING else f"{value:.3f}"


def count_line(scores: Scores) -> str:
    return (
        f"{scores.images} images, {scores.objects} objects, {scores.detections} predictions, "
        f"at most {scores.max_dets} of a class per image"
    )


def threshold_line(scores: Scores) -> str:
    if scores.best_threshold is None:
        return "no threshold: no query's best answer covers an object with IoU 0.5"
    return (
        f"best F1 at IoU 0.5: {scores.f1:.3f} at score threshold {scores.best_threshold:.3f} "
        f"(precision {scores.precision:.3f}, recall {scores.recall:.3f})"
    )


def aligned(rows: Rows, left: int) -> list[str]:
    """Lines with columns of equal width; the first `left` are flush left, the rest flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def pipes(rows: Rows, left: int) -> list[str]:
    """Lines of a markdown table, with the same alignment."""
    rule = [":---" if i < left else "---:" for i in range(len(rows[0]))]
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (escaped[0], rule, *escaped[1:])]
