"""Scores as tables: plain text for the terminal, markdown for summary.md."""

from engine.coco_ap import NOTHING, Scores

MEANING = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, below 32 x 32",
    "APm": "medium",
    "APl": "large, above 96 x 96",
    "AR1": "1 per image",
    "AR10": "{0} per image",
    "AR100": "{1} per image",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}


def coco_rows(scores: Scores) -> list[list[str]]:
    """The 12 numbers of masks and boxes below a header: 0..1, `-` where there is no object."""
    columns = {"mask": scores.metrics}
    if scores.void_removed is not None:
        columns = {"mask, void removed": scores.void_removed, "mask, as COCO": scores.metrics}
    columns["box"] = scores.boxes
    most = scores.max_dets
    rows = [["metric", "of", *columns]]
    for key, meaning in MEANING.items():
        name, meaning = key.replace("100", str(most)), meaning.format(min(10, most), most)
        rows.append([name, meaning, *(number(values[key]) for values in columns.values())])
    return rows


def table(scores: Scores, markdown: bool = False) -> str:
    """The 12 numbers and a row per category."""
    classes = [["category", "objects", "AP", "AP50", "AR"]]
    for row in scores.headline_per_class:
        name, objects, *values = row.values()
        classes.append([name, str(objects), *map(number, values)])
    layout = pipes if markdown else aligned
    counts = (
        f"{scores.images} images, {scores.objects} objects, {scores.detections} predictions, "
        f"at most {scores.max_dets} of a class per image"
    )
    if scores.best_threshold is None:
        threshold = "no threshold: no query's best detection covers an object with IoU 0.5"
    else:
        threshold = (
            f"best F1 at IoU 0.5: {scores.f1:.3f} at score threshold {scores.best_threshold:.3f} "
            f"(precision {scores.precision:.3f}, recall {scores.recall:.3f})"
        )
    return "\n\n".join([counts, layout(coco_rows(scores), 2), layout(classes, 1), threshold])


def side_by_side(scores: dict[str, Scores]) -> str:
    """The numbers of two evaluations by name, and what the second one differs by."""
    rows = [["mask", *scores, "difference"]]
    most = str(next(iter(scores.values())).max_dets)
    for key in MEANING:
        one, other = (each.headline[key] for each in scores.values())
        difference = "-" if one == NOTHING else f"{other - one:+.3f}"
        rows.append([key.replace("100", most), number(one), number(other), difference])
    return aligned(rows, 1)


def number(value: float) -> str:
    return "-" if value == NOTHING else f"{value:.3f}"


def aligned(rows: list[list[str]], left: int) -> str:
    """Columns of equal width; the first `left` are flush left, the rest flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        texts = [text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in cells]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def pipes(rows: list[list[str]], left: int) -> str:
    """A markdown table, with the same alignment."""
    rule = [":---" if i < left else "---:" for i in range(len(rows[0]))]
    header, *rest = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rest))
