"""Entry: pictures → overlays, instance-id PNGs, a COCO json and a table of what was found."""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import rle
from data.batch import Annotation, collate
from data.errors import InputError
from data.pictures import read_rgb
from data.presets import EvalPreset
from engine import checkpoint, draw, options, runs
from engine.log import say

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
COLUMNS = ("picture", "object", "class", "score", "area", "x0", "y0", "x1", "y1", "cx", "cy")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.parser("Find objects in pictures.")
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, folders, or .txt lists")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of the newest run if not given")
    parser.add_argument(
        "--threshold", type=float, help="score; the one with the best F1 on val if not given"
    )
    options.add_image_size(parser)
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="a new folder")
    options.add_device(parser)
    options.add_debug(parser)
    return parser.parse_args(argv)


def pictures_of(paths: list[Path]) -> list[Path]:
    """All pictures that paths name: files, the pictures in folders, the lines of lists.

    Raises:
        InputError: a path does not exist, or there is no picture at all.
    """
    found = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.suffix == ".txt" and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [path.parent / line.strip() for line in lines if line.strip()]
        else:
            found.append(path)
    for path in found:
        if not path.is_file():
            raise InputError(f"{path}: no such picture; correct the name, or the list it is in")
    if not found:
        raise InputError(
            f"{', '.join(map(str, paths))}: no pictures ({', '.join(SUFFIXES)}) in there; "
            "name others"
        )
    return found


@torch.inference_mode()
def find_objects(
    model: torch.nn.Module,
    postprocess,
    picture: Image.Image,
    preset: EvalPreset,
    threshold: float | None,
    device: torch.device,
) -> dict:
    """The results of one picture, masks as RLE at its own size."""
    size = (picture.height, picture.width)
    nothing = Annotation(np.zeros(0, np.int64), [], None, 0, size)
    batch = collate([preset(picture, nothing)]).to(device)
    outputs = model(batch.images, batch.padding)
    return postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)[0]


def instance_map(masks: list[dict], size: tuple[int, int]) -> Image.Image:
    """Instance ids 1.. in the order of the table, 0 elsewhere; a pixel has one id only.

    Where masks overlap, the smaller one is on top (of equal ones, the first), so that an object is
    not erased by the one it lies in, whatever the scores. The json has the whole masks.
    """
    ids = np.zeros(size, np.uint16)
    for place in np.argsort(rle.area(masks), kind="stable")[::-1]:
        ids[rle.decode([masks[place]], size)[0]] = place + 1
    return Image.fromarray(ids)


def table_rows(name: str, result: dict, class_names: list[str], size: tuple[int, int]) -> list:
    """One row per object: class, score, area in pixels, box and centroid in pixels."""
    rows = []
    for number, mask in enumerate(result["masks"], 1):
        ys, xs = np.nonzero(rle.decode([mask], size)[0])
        values = (
            class_names[int(result["labels"][number - 1])],
            round(float(result["scores"][number - 1]), 4),
            len(xs),
            *map(int, result["boxes"][number - 1].tolist()),
            round(float(xs.mean()), 1),
            round(float(ys.mean()), 1),
        )
        rows.append((name, number, *values))
    return rows


def coco_records(image_id: int, result: dict, categories: list[dict], first_id: int) -> list[dict]:
    """Objects as COCO annotations with the original category ids."""
    areas = rle.area(result["masks"])
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": categories[int(label)]["id"],
            "segmentation": rle.to_json(mask),
            "area": int(areas[i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": round(float(score), 5),
        }
        for i, (label, mask, score, (x0, y0, x1, y1)) in enumerate(
            zip(result["labels"], result["masks"], result["scores"], result["boxes"].tolist())
        )
    ]


def write_all(
    paths: list[Path], out: Path, categories: list[dict], find: Callable[[Image.Image], dict]
) -> int:
    """Everything about every picture into the folder `out`; returns the number of objects."""
    class_names = [category["name"] for category in categories]
    rows, images, annotations = [], [], []
    bar = tqdm(paths, desc="predicting", leave=False, dynamic_ncols=True)
    for image_id, path in enumerate(bar, 1):
        picture = read_rgb(path)
        size = (picture.height, picture.width)
        result = find(picture)
        name = f"{image_id:05d}_{path.stem}"
        overlay = draw.overlay(
            picture, result["labels"].tolist(), result["scores"].tolist(), result["masks"],
            class_names,
        )  # fmt: skip
        overlay.save(out / f"{name}_overlay.jpg", quality=92)
        instance_map(result["masks"], size).save(out / f"{name}_instances.png")
        rows += table_rows(path.name, result, class_names, size)
        images.append({"id": image_id, "file_name": path.name, "height": size[0], "width": size[1]})
        annotations += coco_records(image_id, result, categories, len(annotations) + 1)
    with open(out / "objects.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    runs.write_json(
        out / "objects.json",
        {"images": images, "categories": categories, "annotations": annotations},
    )
    return len(rows)


def main(argv: list[str], builder: checkpoint.Builder = options.build_model) -> None:
    """`builder` rebuilds the model: the one it was trained with, if that was not the zoo's."""
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    device = options.device_for(opts.device)
    paths = pictures_of(opts.pictures)
    content = checkpoint.load(opts.checkpoint or runs.newest_checkpoint(options.RUNS))
    threshold, origin = checkpoint.score_threshold(content["best"], opts.threshold)
    preset = EvalPreset(opts.image_size or content["options"]["image_size"])
    categories = [{"id": c["id"], "name": c["name"]} for c in content["classes"]]
    model, _, postprocess = checkpoint.build(content, builder)
    model.to(device)
    with runs.appearing(opts.out) as unfinished:
        found = write_all(
            paths,
            unfinished,
            categories,
            lambda picture: find_objects(model, postprocess, picture, preset, threshold, device),
        )
    say(
        f"{found} objects in {len(paths)} pictures, scores above {threshold:.3f} ({origin}): "
        f"{opts.out}"
    )


if __name__ == "__main__":
    options.run_entry(main)
