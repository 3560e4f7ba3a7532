"""GeoJSON in pixels, as QuPath exports it: one file for each image, which has its name.

Coordinates are pixels of the full resolution. Map coordinates, which other programs write, are
refused, because they would need the georeference of the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.errors import MALFORMED, BadRecords, InputError
from data.images import upright_size
from data.readers import checks
from data.readers.content import Content
from data.readers.image_files import ImageFiles, files_of_images
from data.readers.source import Source, head_of

NAME, TITLE = "qupath", "QuPath GeoJSON"
LAYOUT = "x.geojson beside x.tif"
OWN_IDS = False

FIX = "correct it in QuPath or remove it"
SUFFIXES = (".geojson", ".json")
KEYS = re.compile(r'"type"\s*:\s*"(FeatureCollection|Feature|(Multi)?Polygon)"')
AREAS = ("Polygon", "MultiPolygon")
COLLECTION = "GeometryCollection"
NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
CLASSES = ("classification", "class", "label", "category")  # properties; QuPath writes the first
NO_OBJECT = {"tile": "tiles", "tma_core": "cores of a TMA", "root": "whole images"}  # objectType
UNNAMED, ONLY_CLASS = "", "object"  # no class, and that of all where nothing has a class
DEGREES = re.compile(r"CRS84|EPSG:+4326")  # names of coordinates in longitude and latitude


def find(path: Path) -> dict[str, Source] | None:
    """The files in a folder, else those in the folders below it, by the splits these name."""
    return files_of_images(path, is_geojson, suffixes=SUFFIXES)


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes sorted by name."""
    folder = source.images[0]
    content, images = Content(bad), ImageFiles(folder)
    only = images.only() if len(source.names) == 1 else None
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the file", FIX, where=str(file)):
            record = checks.load_json(file)
            if not is_record(record):
                content.counts["other json files"] += 1
                continue
            features, place = features_of(record), PurePosixPath(name)
            found = images.find(place.stem, str(place.parent), place.stem) or only
            if found is None:
                raise InputError(f"has no image of its name (as {place.stem}.png) in {folder}")
            height, width = upright_size(folder / found)
            require_pixels(features, record, height, width)
            image = content.add_image(found, width, height, name)
            for number, feature in enumerate(features, start=1):
                add_feature(content, image, feature, file, f"feature {number}")
    name_unnamed(content)
    return content.finished()


def is_geojson(path: Path) -> bool:
    start = head_of(path)
    return start[:1] in ("{", "[") and KEYS.search(start) is not None


def is_record(record: Any) -> bool:
    """Whether json is a collection, a list of features, a feature or a geometry."""
    if isinstance(record, list):
        return not record or (isinstance(record[0], dict) and "geometry" in record[0])
    return isinstance(record, dict) and "type" in record


def features_of(record: Any) -> list[Any]:
    if isinstance(record, list):
        return record
    if record["type"] == "FeatureCollection":
        return list(record["features"])
    return [record if record["type"] == "Feature" else {"geometry": record}]


def require_pixels(features: list[Any], record: Any, height: int, width: int) -> None:
    """Checks that coordinates are pixels: half of the objects inside, not all in one pixel."""
    boxes = np.array([box for feature in features if (box := box_of(feature))]).reshape(-1, 4)
    if not len(boxes):
        return
    (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    outside = (boxes[:, :2] >= (width, height)).any(1) | (boxes[:, 2:] <= 0).any(1)
    named = isinstance(record, dict) and DEGREES.search(str(record.get("crs")))
    degrees = named and max(-left, right) <= 180 and max(-top, bottom) <= 90
    dots = len(boxes) > 1 and right - left < 1 and bottom - top < 1
    if outside.mean() > 0.5 or degrees or dots:
        raise InputError(
            f"has objects from x = {left:.6g} to {right:.6g} and y = {top:.6g} to {bottom:.6g} "
            f"where its image has {width} x {height} pixels, so use the image of full resolution; "
            "map coordinates (as of SpaceNet) must be converted to pixels with the transform of "
            "the image"
        )


def box_of(feature: Any) -> list[float] | None:
    """The box left, top, right, bottom around an object; None where it has no usable area."""
    try:
        geometry = feature["geometry"]
        rings = [outer for outer, *_ in parts_of(geometry)] if is_area(geometry) else []
    except MALFORMED:
        return None
    if not rings:
        return None
    points = np.concatenate(rings).reshape(-1, 2)
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def is_area(geometry: Any) -> bool:
    """Whether a geometry has an area."""
    if not isinstance(geometry, dict):
        return False
    if geometry.get("type") == COLLECTION:
        return any(map(is_area, geometry["geometries"]))
    return geometry.get("type") in AREAS and geometry.get("coordinates") != []


def parts_of(geometry: dict) -> Iterator[list[np.ndarray]]:
    """The polygons of a geometry as rings (x, y, x, y, ...): the outer one, then its holes."""
    if geometry["type"] == COLLECTION:
        for each in filter(is_area, geometry["geometries"]):
            yield from parts_of(each)
        return
    coordinates = geometry["coordinates"]
    for part in [coordinates] if geometry["type"] == "Polygon" else coordinates:
        if not part:
            raise InputError(f"has {checks.shortened(part)} where a list of rings is needed")
        yield [ring(points) for points in part]


def ring(points: Any) -> np.ndarray:
    """The points [[x, y], ...] of a ring without the last one, which is the first; z is dropped."""
    points = points[:-1] if len(points) > 1 and points[0] == points[-1] else points
    return np.array(checks.flatten([point[:2] for point in points]))


def add_feature(content: Content, image: dict, feature: Any, file: Path, what: str) -> None:
    label = None
    try:
        if isinstance(feature, dict) and feature.get("geometry", 0) is None:  # GeoJSON allows it
            content.counts["features without a place"] += 1
            return
        geometry, properties = feature["geometry"], feature.get("properties") or {}
        label = label_of(properties)
        what = f"{what} ({label})" if label else what
        kind = geometry.get("type")
        role = properties.get("objectType")
        if isinstance(role, str) and role in NO_OBJECT:
            content.counts[NO_OBJECT[role]] += 1
        elif is_area(geometry):
            parts = [checks.with_holes(outer, holes, image) for outer, *holes in parts_of(geometry)]
            content.add(image, label, parts)
            content.counts["nuclei of cells"] += "nucleusGeometry" in feature
        elif kind in (*NO_AREA, *AREAS, COLLECTION):
            content.counts["lines, points and empty areas"] += 1
        else:
            raise InputError(f"has the unknown geometry {checks.shortened(kind)}")
    except MALFORMED as error:
        left = checks.nested(feature, "geometry", "coordinates")
        content.add_broken(image, label or None, error, file, what, FIX, points=left)


def label_of(properties: dict) -> str:
    for key in CLASSES:
        value = properties.get(key)
        if isinstance(value, dict):  # newer files list the names of a class and of its subclasses
            names = value.get("names")
            value = ": ".join(map(str, names)) if isinstance(names, list) else value.get("name")
        if value not in (None, ""):
            return checks.class_name(value)
    return UNNAMED


def name_unnamed(content: Content) -> None:
    """Gives unnamed objects one class if no object has a class; else they will be ignored."""
    named = any(label for label, _ in content.objects)
    for place, (label, record) in enumerate(content.objects):
        if label == UNNAMED:
            more = {"broken": True} if named else {}
            content.objects[place] = (None if named else ONLY_CLASS, record | more)
            content.counts["objects without a class"] += named
