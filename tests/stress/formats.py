"""A small set in every format.

Formats that can be written are made from the COCO set; each of the others has three images (of
SIZES) with the same object, a square, drawn as the format draws.
"""

import base64
import contextlib
import functools
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from engine import convert
from tests.stress.sets import JSON, NAMES, SIZES, SmallSet, coco_set, image_bytes, sbd_set, voc_set

CORNERS = [[4.0, 3.0], [14.0, 3.0], [14.0, 12.5], [4.0, 12.5]]
FLAT = [number for corner in CORNERS for number in corner]


def squares() -> Iterator[tuple[str, tuple[int, int], np.ndarray]]:
    """Name, size (h, w) and mask of each image's object."""
    for name, size in zip(NAMES, SIZES, strict=True):
        mask = np.zeros(size, np.uint8)
        mask[3:12, 4:14] = 1
        yield name, size, mask


def png(pixels: np.ndarray, palette: bool = False) -> bytes:
    with io.BytesIO() as file:
        image = Image.fromarray(pixels)
        if palette:
            image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        image.save(file, "PNG")
        return file.getvalue()


def photos(folder: str, suffix: str = "png") -> dict[str, bytes]:
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, "PNG")
    return {f"{folder}{name}.{suffix}": image_bytes(size, kind) for name, size, _ in squares()}


def dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


def coloured(mask: np.ndarray, colour: tuple[int, int, int]) -> bytes:
    return png(mask[..., None] * np.array(colour, np.uint8))


def row_runs(mask: np.ndarray) -> list[int]:
    """Row-major runs, the first of background."""
    changes = np.flatnonzero(np.diff(mask.ravel(), append=2)) + 1
    return np.diff(changes, prepend=0).tolist()


@functools.cache
def written(name: str) -> dict[str, bytes]:
    """The files of the COCO set in another format that can be written."""
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        coco_set().write(Path(folder, "coco"))
        root = Path(folder, name)
        convert.main([f"{folder}/coco", str(root), "--to", name])
        files = [path for path in root.rglob("*") if path.is_file() and path.name != "losses.csv"]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def converted(name: str) -> Callable[[], SmallSet]:
    return lambda: SmallSet(None, dict(written(name)))


def coco() -> SmallSet:
    made = coco_set()
    return SmallSet(None, made.files | {JSON: dumped(made.content)})


def cvat_masks() -> SmallSet:
    files = photos("JPEGImages/", "jpg")
    files["labelmap.txt"] = (
        b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrab:250,50,83::\n"
    )
    files["ImageSets/Segmentation/default.txt"] = "\n".join(NAMES).encode()
    for name, _, mask in squares():
        files[f"SegmentationClass/{name}.png"] = coloured(mask, (250, 50, 83))
        files[f"SegmentationObject/{name}.png"] = coloured(mask, (128, 0, 0))
    return SmallSet(None, files)


def via() -> SmallSet:
    files, content = photos(""), {}
    xs, ys = zip(*CORNERS)
    shapes = [
        {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
        {"name": "circle", "cx": 9, "cy": 9, "r": 3},
        {"name": "ellipse", "cx": 9, "cy": 9, "rx": 4, "ry": 3, "theta": 0.5},
    ]
    for name in files:
        regions = [
            {"shape_attributes": one, "region_attributes": {"name": "crab"}} for one in shapes
        ]
        content[f"{name}99"] = {"filename": name, "size": 99, "regions": regions,
                                "file_attributes": {}}  # fmt: skip
    return SmallSet(None, files | {"via_region_data.json": dumped(content)})


def via_3() -> SmallSet:
    files = photos("")
    ids = {str(number): name for number, name in enumerate(files, start=1)}
    outline = [7, *(number for corner in CORNERS for number in corner)]
    attribute = {"aname": "name", "type": 4, "options": {"0": "crab", "1": "fish"}}
    content = {
        "project": {"pid": "x", "vid_list": [*ids]},
        "attribute": {"1": attribute},
        "file": {id_: {"fid": id_, "fname": name, "type": 2} for id_, name in ids.items()},
        "view": {id_: {"fid_list": [id_]} for id_ in ids},
        "metadata": {
            f"{id_}_{xy[0]}": {"vid": id_, "flg": 0, "z": [], "xy": xy, "av": {"1": "0"}}
            for id_ in ids
            for xy in (outline, [3, 9, 9, 3], [4, 9, 9, 4, 3])
        },
    }
    return SmallSet(None, files | {"via_project.json": dumped(content)})


def via_csv() -> SmallSet:
    rows = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
            "region_attributes"]  # fmt: skip
    shape = '{""name"":""polygon"",""all_points_x"":[4,14,14],""all_points_y"":[3,3,12]}'
    rows += [f'{name}.png,9,{{}},1,0,"{shape}","{{""name"":""crab""}}"' for name in NAMES]
    return SmallSet(None, photos("") | {"via_region_data.csv": "\n".join(rows).encode()})


def panoptic() -> SmallSet:
    files, images, annotations = photos("train/", "jpg"), [], []
    for number, (name, (height, width), mask) in enumerate(squares()):
        files[f"annotations/panoptic_train/{name}.png"] = coloured(mask, (7, 1, 0))
        images.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
        segment = {"id": 263, "category_id": 3, "area": 90, "bbox": [4, 3, 10, 9], "iscrowd": 0}
        annotations.append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": [segment]}
        )
    categories = [{"id": 3, "name": "crab", "isthing": 1}, {"id": 9, "name": "sea", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return SmallSet(None, files | {"annotations/panoptic_train.json": dumped(content)})


def datumaro() -> SmallSet:
    items = []
    for name, (height, width), mask in squares():
        runs = row_runs(mask.T)
        annotations = [
            {"id": 0, "type": "polygon", "label_id": 0, "group": 1, "points": FLAT, "z_order": 0},
            {"id": 1, "type": "bbox", "label_id": 1, "group": 0, "bbox": [1, 1, 5, 6]},
            {"id": 2, "type": "mask", "label_id": 1, "group": 3,
             "rle": {"counts": runs, "size": [height, width]}},
        ]  # fmt: skip
        image = {"path": f"{name}.png", "size": [height, width]}
        items.append({"id": name, "annotations": annotations, "attr": {}, "image": image})
    labels = [{"name": name, "parent": "", "attributes": []} for name in ("crab", "fish")]
    content = {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}
    return SmallSet(None, photos("images/default/") | {"annotations/default.json": dumped(content)})


def darwin() -> SmallSet:
    files = photos("images/")
    for name, (height, width), mask in squares():
        runs = [number for pair in zip((0, 1, 0) * 50, row_runs(mask)) for number in pair]
        path = [{"x": x, "y": y} for x, y in CORNERS]
        annotations = [
            {"id": "1", "name": "crab", "polygon": {"paths": [path]}},
            {"id": "2", "name": "fish", "mask": {}},
            {"id": "3", "name": "__raster_layer__",
             "raster_layer": {"dense_rle": runs, "mask_annotation_ids_mapping": {"2": 1},
                              "total_pixels": height * width}},
        ]  # fmt: skip
        slot = {"slot_name": "0", "type": "image", "width": width, "height": height}
        slot["source_files"] = [{"file_name": f"{name}.png", "url": "https://x.test/a"}]
        item = {"name": f"{name}.png", "path": "/", "slots": [slot]}
        files[f"{name}.json"] = dumped(
            {"version": "2.0", "schema_ref": "x", "item": item, "annotations": annotations}
        )
    return SmallSet(None, files)


def supervisely() -> SmallSet:
    files = photos("first/img/")
    classes = [{"title": name, "shape": "any", "color": "#102030"} for name in ("crab", "fish")]
    files["meta.json"] = dumped({"classes": classes, "tags": []})
    for name, (height, width), mask in squares():
        data = base64.b64encode(zlib.compress(png(mask[3:12, 4:14] * 255))).decode()
        objects = [
            {"classTitle": "crab", "geometryType": "polygon",
             "points": {"exterior": CORNERS, "interior": [[[6, 5], [8, 5], [8, 7]]]}},
            {"classTitle": "fish", "geometryType": "bitmap",
             "bitmap": {"data": data, "origin": [4, 3]}},
        ]  # fmt: skip
        content = {"size": {"height": height, "width": width}, "objects": objects, "tags": []}
        files[f"first/ann/{name}.png.json"] = dumped(content)
    return SmallSet(None, files)


def cityscapes() -> SmallSet:
    files = {}
    for number, (_, size, mask) in enumerate(squares()):
        stem = f"ulm_00000{number}_000019"
        files[f"leftImg8bit/train/ulm/{stem}_leftImg8bit.png"] = image_bytes(size)
        ids = np.where(mask, 26001, 7).astype(np.uint16)
        ids[0], ids[-1] = 26, 4
        files[f"gtFine/train/ulm/{stem}_gtFine_instanceIds.png"] = png(ids)
    return SmallSet(None, files)


def davis() -> SmallSet:
    files = {"ImageSets/2017/train.txt": b"bike\n"}
    for number in range(3):
        _, size, mask = next(squares())
        files[f"JPEGImages/480p/bike/0000{number}.jpg"] = image_bytes(size, "JPEG")
        files[f"Annotations/480p/bike/0000{number}.png"] = png(mask * 2, palette=True)
    return SmallSet(None, files)


def openimages() -> SmallSet:
    files = photos("images/train/", "jpg")
    rows = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"]
    for name, _, mask in squares():
        rows.append(f"{name}_m01_1.png,{name},/m/01,1,0.1,0.5,0.1,0.6,0.9,")
        files[f"masks/train/{name}_m01_1.png"] = png(mask > 0)
    files["annotations/train-annotations-object-segmentation.csv"] = "\n".join(rows).encode()
    files["annotations/oidv6-class-descriptions.csv"] = b"LabelName,DisplayName\n/m/01,Crab\n"
    return SmallSet(None, files)


def ade20k() -> SmallSet:
    files = photos("images/training/x/", "jpg")
    for name, (height, width), mask in squares():
        parts = np.stack([mask * 20, mask * 57, mask * 3], -1).astype(np.uint8)
        files[f"images/training/x/{name}_seg.png"] = png(parts)
        files[f"images/training/x/{name}/instance_000_{name}.png"] = png(mask * 255)
        one = {"id": 0, "name": "crab", "name_ndx": 569, "occluded": "no", "crop": False,
               "parts": {"part_level": 0}, "instance_mask": f"{name}/instance_000_{name}.png",
               "polygon": {"x": [4, 14, 14, 4], "y": [3, 3, 12, 12]}}  # fmt: skip
        content = {"filename": f"{name}.jpg", "folder": "x", "imsize": [height, width, 3],
                   "object": [one]}  # fmt: skip
        files[f"images/training/x/{name}.json"] = dumped({"annotation": content})
    return SmallSet(None, files)


def qupath() -> SmallSet:
    files = photos("")
    for name in NAMES:
        geometry = {"type": "Polygon", "coordinates": [[*CORNERS, CORNERS[0]]]}
        about = {"objectType": "annotation", "classification": {"name": "crab", "color": [1, 2, 3]}}
        feature = {"type": "Feature", "geometry": geometry, "properties": about}
        content = {"type": "FeatureCollection", "features": [feature]}
        files[f"{name}.geojson"] = dumped(content)
    return SmallSet(None, files)


def roi() -> bytes:
    head = b"Iout" + struct.pack(">hBBhhhhh", 227, 0, 0, 3, 4, 12, 14, 4)
    return head.ljust(64, b"\0") + struct.pack(">8h", 0, 10, 10, 0, 0, 0, 9, 9)


def imagej_roi() -> SmallSet:
    return SmallSet(None, photos("") | {f"{name}.roi": roi() for name in NAMES})


def roi_set() -> SmallSet:
    files = photos("")
    for name in NAMES:
        with io.BytesIO() as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for number in range(2):
                    archive.writestr(f"000{number}-0009.roi", roi())
            files[f"{name}.zip"] = file.getvalue()
    return SmallSet(None, files)


def spacenet() -> SmallSet:
    rows = ["ImageId,BuildingId,PolygonWKT_Pix,PolygonWKT_Geo"]
    for name in NAMES:
        ring = ",".join(f"{x} {y} 0" for x, y in (*CORNERS, CORNERS[0]))
        rows.append(f'{name},1,"POLYGON (({ring}))",1')
    return SmallSet(None, photos("RGB/", "tif") | {"summaryData/all.csv": "\n".join(rows).encode()})


def huggingface() -> SmallSet:
    files = photos("images/")
    for name, _, mask in squares():
        files[f"annotations/{name}.png"] = coloured(mask, (3, 1, 0))
    return SmallSet(None, files)


CONVERTED = {  # by reader: the writer
    "labelme": "labelme", "cvat-xml": "cvat", "id-images": "ids", "png-per-object": "masks",
    "yolo": "yolo", "label-studio": "label-studio",
}  # fmt: skip
SETS: dict[str, Callable[[], SmallSet]] = {
    "coco": coco, "voc": voc_set, "sbd": sbd_set, "cvat-masks": cvat_masks, "via": via,
    "via, csv": via_csv, "via, version 3": via_3, "coco-panoptic": panoptic, "datumaro": datumaro,
    "darwin": darwin, "supervisely": supervisely, "cityscapes": cityscapes, "davis": davis,
    "openimages": openimages, "ade20k": ade20k, "qupath": qupath, "imagej-roi": imagej_roi,
    "imagej-roi, zip": roi_set, "spacenet": spacenet, "huggingface": huggingface,
} | {reader: converted(writer) for reader, writer in CONVERTED.items()}  # fmt: skip
