"""The output of `predict`: images, a COCO json, a table, and data sets for annotation tools.

Result images are in one folder, named by a running number and the base name of the image. In the
json and the table, images are named by their relative path. A data set for a tool is a subfolder
with copies of the images.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.images import read_pages
from data.records import Category
from data.writers import WRITERS, ids
from data.writers.content import unique_stem
from data.writers.shapes import with_polygons
from data.writers.target import Losses, with_parent
from engine import files, inputs, skipped
from engine.result import COLUMNS as OBJECT_COLUMNS
from engine.result import Result

NAME_BYTES = 100  # of the image name in file names, which may have 255
LONGEST_JPEG = 65_500  # pixels; the overlay of a longer image is a PNG
MARK = "objects.json"  # of a folder that --overwrite may replace; it is always written
CUTOUTS = "cutouts"
DEFAULT = ("overlay", "ids", "coco", "csv")
SETS = tuple(name for name in WRITERS if name not in DEFAULT)
NAMES = (*DEFAULT, CUTOUTS, *SETS)
SPLIT = "train"  # of the images in a set, which will be learned from
COLUMNS = ("image", *OBJECT_COLUMNS)


class Output:
    """Writes the results of images into a folder, and collects their objects.

    Args:
        categories: of the training data, in the order of the model's classes.
        save: of `NAMES`.
        colour_by: what has a colour of its own in overlays, "object" or "class".
    """

    def __init__(
        self,
        folder: Path,
        categories: list[dict],
        save: Sequence[str] = DEFAULT,
        colour_by: str = "object",
    ) -> None:
        self.folder, self.save, self.colour_by = folder, save, colour_by
        self.sets = [name for name in SETS if name in save]
        self.copies: list[str] = []  # names of the images in the sets
        self._stems: set[str] = set()
        self.classes = [
            Category(index, each["id"], each["name"]) for index, each in enumerate(categories)
        ]
        self.rows: list[Sequence] = []  # of objects.csv
        self.coco: dict[str, list] = {"images": [], "categories": categories, "annotations": []}

    def write_images(self, number: int, name: str, image: Image.Image, result: dict) -> dict:
        """Writes the result images of one image; returns the record for `collect`."""
        found, size = Result(image, result, self.classes), (image.height, image.width)
        stem = Path(name).stem.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")
        target = f"{number:05d}_{stem}"
        if "overlay" in self.save:
            suffix = "jpg" if max(image.size) <= LONGEST_JPEG else "png"
            drawn = found.overlay(self.colour_by)
            drawn.save(self.folder / f"{target}_overlay.{suffix}", quality=92)
        if "ids" in self.save:
            map_ = Image.fromarray(ids.index_map(found.rles, size))
            map_.save(self.folder / f"{target}_instances.png")
        if CUTOUTS in self.save:
            (self.folder / CUTOUTS).mkdir(exist_ok=True)
            for place, crop in enumerate(found.crops(), 1):  # the `object` of the table
                crop.save(self.folder / CUTOUTS / f"{target}_object{place:03d}.png")
        return {
            "image": {"id": number, "file_name": name, "height": size[0], "width": size[1]},
            "annotations": found.to_coco(number),
            "rows": [list(row.values()) for row in found.as_table()],
        }

    def collect(self, record: dict, path: Path, image: Image.Image | None = None) -> None:
        """Adds a record of `write_images` to the tables, and its image (a page of `path`) to the
        sets.
        """
        name, annotations = record["image"]["file_name"], self.coco["annotations"]
        if self.sets:
            self.copy(name, path, image)
        self.coco["images"].append(record["image"])
        annotations += [
            one | {"id": number}
            for number, one in enumerate(record["annotations"], len(annotations) + 1)
        ]
        self.rows += [(name, *row) for row in record["rows"]]

    def copy(self, name: str, path: Path, image: Image.Image | None = None) -> None:
        """Copies the image into every set; pages become images of their own."""
        stem, mark, page = name.rpartition(inputs.PAGE)
        is_page = bool(mark) and page.isdecimal()  # a file may have a name with the mark, too
        if is_page:
            name = f"{stem.rpartition('.')[0]}_page{page}.png"
            image = image or next(read_pages(path, [int(page) - 1]))
        # Names on a disk need not be UTF-8.
        name = unique_stem(name.encode("utf-8", "replace").decode("utf-8"), self._stems)
        self.copies.append(name)
        for each in self.sets:
            target = with_parent(self.folder / each / WRITERS[each].image_path(SPLIT, name))
            if is_page:
                image.save(target)
            else:
                shutil.copyfile(path, target)

    def summary(self, total: int) -> str:
        return f"{len(self.rows)} objects; {len(self.coco['images'])} of {total} images read"

    def remove(self) -> None:
        """Removes what an earlier `write` left."""
        for name in (MARK, skipped.NAME):
            (self.folder / name).unlink(missing_ok=True)
        for name in self.sets:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def write(self) -> list[str]:
        """Writes objects.csv, objects.json and the sets; returns notes on what the sets lack."""
        if "csv" in self.save:
            fix = "choose another --out"
            files.write_csv(self.folder / "objects.csv", [COLUMNS, *self.rows], fix)
        sentences = []
        for name in self.sets:
            writer, lost = WRITERS[name], Losses()
            images = [
                image | {"file_name": copy}
                for image, copy in zip(self.coco["images"], self.copies, strict=True)
            ]
            content = self.coco | {"images": images}
            if name == "labelme":  # it has no brush to correct masks with
                content["annotations"] = list(map(with_polygons, self.coco["annotations"]))
            writer.write(self.folder / name, {SPLIT: content}, lost, iter)
            sentences += [f"{writer.TITLE} cannot hold {each}" for each in lost.sentences()]
        files.write_json(self.folder / MARK, self.coco)
        return sentences
