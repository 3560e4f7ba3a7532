"""DAVIS and YouTube-VOS: a PNG for each frame, whose palette indices are the objects of the video.

255 is void, but in maps that have nothing else and no palette (DAVIS 2016) it is the object. Frames
are read as images. YouTube-VOS has the class of each object in meta.json; DAVIS has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data import rle
from data.errors import BadRecords, InputError
from data.images import opened
from data.readers.checks import class_name, load_json
from data.readers.content import Content
from data.readers.maps import images_by_stem, read_numbers
from data.readers.source import Source, lines_of, split_of

NAME, TITLE = "davis", "DAVIS"
LAYOUT = "JPEGImages/480p/VIDEO/00000.jpg, Annotations/480p/VIDEO/00000.png"
OWN_IDS = False

CLASS, VOID = "object", 255
IMAGES, MAPS = "JPEGImages", ("Annotations", "Annotations_unsupervised")
RESOLUTIONS = ("480p", "Full-Resolution", "1080p", "")  # none in YouTube-VOS
META = "meta.json"


def find(path: Path) -> dict[str, Source] | None:
    """The lists of ImageSets, else all videos."""
    pairs = ((path / maps / size, path / IMAGES / size) for size in RESOLUTIONS for maps in MAPS)
    for maps, images in pairs:
        videos = frames_in(maps) if maps.is_dir() and images.is_dir() else {}
        if videos:
            found = {}
            for split, listed in (lists_of(path, videos) or {"all": list(videos)}).items():
                names = [name for video in listed for name in videos[video]]
                files = [maps / name for name in names]
                found[split] = Source(maps, split, [images], names, [*files, maps.parent / META])
            return found
    return None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The frames as COCO content; classes of meta.json sorted, else the class "object" alone."""
    meta = source.path.parent / META
    classes = classes_of(meta) if meta.is_file() else None
    content = Content(bad, [CLASS] if classes is None else ())
    images = images_by_stem(source.images[0])
    for name in source.names:
        stem = name.removesuffix(".png")
        image = images.get(stem, f"{stem}.jpg")
        own = None if classes is None else classes.get(name.split("/")[0], {})
        with bad.noting(source.path / name, "the map"):
            add_frame(content, source.path / name, source.images[0], image, own)
    return content.finished()


def frames_in(maps: Path) -> dict[str, list[str]]:
    """Video -> its maps, relative to the folder."""
    found = {}
    for folder in sorted(one for one in maps.iterdir() if one.is_dir()):
        frames = sorted(one.name for one in folder.glob("[!.]*.png"))
        if frames:
            found[folder.name] = [f"{folder.name}/{frame}" for frame in frames]
    return found


def lists_of(root: Path, videos: dict[str, list[str]]) -> dict[str, list[str]]:
    """Split -> videos, of ImageSets/2017 if there. A line is a video, or the path of a frame."""
    for folder in sorted((root / "ImageSets").glob("*/"), key=lambda one: one.name != "2017"):
        found = {}
        for file in sorted(folder.glob("*.txt")):
            paths = [line.split()[0].split("/") for line in lines_of(file, "unpack it again")]
            names = dict.fromkeys(path[-2] if len(path) > 1 else path[0] for path in paths)
            listed = [name for name in names if name in videos]
            if listed:
                found[split_of(file.stem)] = listed
        if len(found) > 1:
            found.pop("all", None)  # trainval
        if found:
            return found
    return {}


def classes_of(meta: Path) -> dict[str, dict[int, str]]:
    """Video -> number of an object -> its class."""
    content = load_json(meta)
    try:
        return {
            video: {int(number): class_name(one["category"]) for number, one in objects.items()}
            for video, objects in (
                (name, one["objects"]) for name, one in content["videos"].items()
            )
        }
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        raise InputError(
            f"{meta} is not that of YouTube-VOS, with videos, objects and a category for each "
            f"({type(reason).__name__}: {reason}): unpack it again, or remove it for one class"
        ) from None


def add_frame(
    content: Content, file: Path, images: Path, name: str, classes: dict[int, str] | None
) -> None:
    """Adds a frame; `classes`: those of its video, None if there are none."""
    values = read_numbers(file)
    numbers, _ = rle.distinct(values)
    numbers = numbers[numbers > 0].tolist()
    has_void = VOID in numbers and not (numbers == [VOID] and not has_palette(file))
    if has_void:
        numbers.remove(VOID)
    unknown = [number for number in numbers if classes is not None and number not in classes]
    if unknown:
        raise InputError(
            f"{file} holds object {unknown[0]}, which {META} does not list: add it there, or "
            "remove it here"
        )
    void = values == VOID if has_void else None
    image = content.add_map(name, values.shape, file, images, void)
    for number, mask in zip(numbers, rle.from_index_map(values, numbers), strict=True):
        content.add(image, CLASS if classes is None else classes[number], [mask])


def has_palette(path: Path) -> bool:
    with opened(path) as file:
        return file.mode == "P"
