"""The objects found in one image, for programs and notebooks."""

import io
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from data import rle
from data.records import Category
from engine import files
from engine.report import draw

SHOWN = 1024  # pixels of the longer side, in a notebook
COLUMNS = ("object", "class", "score", "area", "x0", "y0", "x1", "y1", "cx", "cy")


class Result:
    """Objects of an image, the best first.

    Args:
        image: RGB, upright.
        found: a result of the contract in data/batch.py, its masks as RLE.
        categories: of the training data, in the order of the model's classes.

    scores float32 [M]. labels int64 [M]: category ids of the training data. names: M class names.
    boxes float32 [M,4]: x0, y0, x1, y1 in pixels, the far edges exclusive. rles: M masks as COCO
    RLE. masks bool [M,H,W], decoded when they are first asked for.
    """

    def __init__(self, image: Image.Image, found: dict, categories: Sequence[Category]) -> None:
        self.image, self.rles = image, found["masks"]
        self.scores = found["scores"].cpu().numpy()
        self.boxes = found["boxes"].cpu().numpy()
        self.class_indices: list[int] = found["labels"].tolist()
        self.class_names = [category.name for category in categories]
        ids = np.array([category.id for category in categories], np.int64)
        self.labels = ids[self.class_indices]
        self.names = [self.class_names[index] for index in self.class_indices]

    def __len__(self) -> int:
        return len(self.rles)

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {name}" for name, number in Counter(self.names).items())
        return f"Result({self.image.width}x{self.image.height}: {counts or 'no objects'})"

    @cached_property
    def masks(self) -> np.ndarray:
        return rle.decode(self.rles, (self.image.height, self.image.width))

    def overlay(self, colour_by: str = "object") -> Image.Image:
        """The image with outlines, classes and scores; colour_by: "object" or "class"."""
        objects = draw.Objects(self.class_indices, self.rles, self.scores.tolist())
        return draw.overlay(self.image, objects, self.class_names, colour_by)

    def save(self, path: str | Path) -> Path:
        """Writes `overlay`; raises InputError if the suffix is of no image format."""
        files.save_image(Path(path), self.overlay(), "choose another path")
        return Path(path)

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> list[dict]:
        """COCO annotations with scores, which json can hold; ids from `first_id` on."""
        found = rle.records(self.rles, self.labels.tolist(), image_id, first_id)
        scores = self.scores.tolist()
        return [one | {"score": round(score, 5)} for one, score in zip(found, scores)]

    def crops(self) -> list[Image.Image]:
        """Each object alone: RGBA of its box, transparent outside its mask."""
        cut = []
        for mask in self.rles:
            inside, (left, top) = rle.decode_inside(mask)  # [h,w]
            box = (left, top, left + inside.shape[1], top + inside.shape[0])
            crop = self.image.crop(box)
            crop.putalpha(Image.fromarray(inside.astype(np.uint8) * 255))
            cut.append(crop)
        return cut

    def as_table(self) -> list[dict]:
        """A row of `COLUMNS` for each object: area, box and centre in pixels."""
        rows = []
        objects = zip(self.rles, self.names, self.scores.tolist(), self.boxes.tolist())
        for place, (mask, name, score, box) in enumerate(objects, 1):
            inside, corner = rle.decode_inside(mask)
            area = int(inside.sum())
            centre = (
                round(start + float(inside.sum(axis) @ np.arange(inside.shape[1 - axis])) / area, 1)
                for axis, start in enumerate(corner)
            )
            values = place, name, round(score, 4), area, *map(int, box), *centre
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        return rows

    def _repr_png_(self) -> bytes:
        shown, file = self.overlay(), io.BytesIO()
        shown.thumbnail((SHOWN, SHOWN))
        shown.save(file, "PNG")
        return file.getvalue()
