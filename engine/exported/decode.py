"""From an image to the input of an exported model, and from its outputs to objects with masks.

    python decode.py PHOTO        finds the objects of a photo, with onnxruntime

    meta = json.load(open("model.json"))
    image, size = prepare(Image.open("photo.jpg"), meta)
    ... run model.onnx on image, uint8 [1,H,W,3] ...
    detections = decode(scores, masks, meta, (height, width))

Needs numpy and Pillow. DECODE.md has the arithmetic in words.
"""

import colorsys
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def prepare(image, meta):
    """An upright RGB image -> input uint8 [1,H,W,3], and (h, w) of the image in it."""
    size = fit((image.height, image.width), meta)
    canvas = np.empty((1, meta["height"], meta["width"], 3), np.uint8)
    canvas[:] = np.round(meta["pad_colour"])
    resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    canvas[0, : size[0], : size[1]] = np.asarray(resized)
    return canvas, size


def decode(scores, masks, meta, original, threshold=None):
    """scores [1,Q,K] and masks [1,Q,h,w] of the model -> objects, best first.

    original: (height, width) of the image. threshold: that of the model if not given.
    Each object is a dict: index, id and name of its class, score, query, box (x0, y0, x1, y1 in
    pixels, the far edges exclusive) and mask, bool [height,width].
    """
    threshold = meta["threshold"] if threshold is None else threshold
    classes, best = scores[0].argmax(1), scores[0].max(1)  # [Q] twice
    order = [int(query) for query in np.argsort(-best, kind="stable") if best[query] > threshold]
    order = order[: meta["config"]["max_detections"]]
    canvas, size = (meta["height"], meta["width"]), fit(original, meta)
    rows, columns = (resize_matrix(*side) for side in zip(masks.shape[2:], canvas, size, original))
    found, better = [], []
    for query in order:
        mask, cells = rows @ (masks[0, query] @ columns.T) > 0, masks[0, query] > 0
        if not mask.any():
            continue
        same = [other for index, other in better if index == classes[query]]
        better.append((classes[query], cells))
        if any(iou(cells, other) > meta["duplicate_iou"] for other in same):
            continue
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1
        category, score = meta["categories"][classes[query]], float(best[query])
        found.append(category | {"score": score, "query": query, "box": box, "mask": mask})
    return found


def fit(original, meta):
    """(height, width) of an image inside the canvas; halves are rounded to even numbers."""
    factor = min(meta["height"] / original[0], meta["width"] / original[1])
    return tuple(max(1, round(side * factor)) for side in original)


def resize_matrix(cells, canvas, size, original):
    """One side: cells of the mask logits -> canvas, cut to the image -> its original size."""
    return linear(size, original) @ linear(cells, canvas)[:size]


def linear(source, target):
    """The matrix [target,source] of bilinear resizing with half-pixel centres."""
    place = ((np.arange(target) + 0.5) * (source / target) - 0.5).clip(0)
    low = np.floor(place).astype(int).clip(max=source - 1)
    high = (low + 1).clip(max=source - 1)
    matrix, share = np.zeros((target, source), np.float32), (place - low).astype(np.float32)
    np.add.at(matrix, (np.arange(target), low), 1 - share)
    np.add.at(matrix, (np.arange(target), high), share)
    return matrix


def iou(one, other):
    """Intersection over union of two masks on the grid of the logits."""
    return np.sum(one & other) / max(1, np.sum(one | other))


def main(path):
    import onnxruntime

    files = [*Path(__file__).resolve().parent.glob("model*.onnx")]
    if not files:
        stop("there is no ONNX file beside this script, which it runs: export with --format onnx")
    file = min(files, key=lambda each: len(each.name))  # model.onnx, or another form
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    meta = json.loads(session.get_modelmeta().custom_metadata_map["mobileinst"])
    try:
        image = ImageOps.exif_transpose(Image.open(path))
    except OSError as error:
        stop(f"{path} cannot be read as an image ({error})")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # convert would clip at 255
        values = np.asarray(image, np.float64)
        values = (values - values.min()) * (255 / max(np.ptp(values), 1e-12))
        image = Image.fromarray(values.round().astype(np.uint8))
    image = image.convert("RGB")
    scores, masks = session.run(["scores", "masks"], {"image": prepare(image, meta)[0]})
    shown, detections = np.array(image), decode(scores, masks, meta, (image.height, image.width))
    for number, detection in enumerate(detections):
        print(f"{detection['score']:.3f}  {detection['name']}  box {detection['box']}")
        colour = 255 * np.array(colorsys.hsv_to_rgb(0.618 * number % 1, 0.8, 1))
        shown[detection["mask"]] = (shown[detection["mask"]] + colour) / 2
    target = Path(path).with_name(f"{Path(path).stem}_objects.png").name
    Image.fromarray(shown).save(target)
    print(f"{len(detections)} objects with scores above {meta['threshold']:.3f}: {target}")


def stop(message):
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        stop("usage: python decode.py PHOTO")
    main(sys.argv[1])
