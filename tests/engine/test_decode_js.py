"""decode.js of an exported model, run by node, gives what the library gives."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data import rle
from engine import web_page
from mobileinst.set_prediction.postprocess import Postprocess

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")

META = {
    "height": 128,
    "width": 192,
    "pad_colour": [123.675, 116.28, 103.53],
    "mask_stride": 8,
    "threshold": 0.3,
    "duplicate_iou": 0.7,
    "config": {"max_detections": 20},
    "categories": [
        {"index": place, "id": id_, "name": name}
        for place, (id_, name) in enumerate([(90, "disc"), (0, "square"), (7, "other")])
    ],
}
# (height, width) of images, and their part of the canvas by hand; half a pixel is rounded to even.
SIZES = {
    (375, 500): (128, 171),
    (500, 375): (128, 96),
    (64, 96): (128, 192),
    (10, 90): (21, 192),
    (3, 700): (1, 192),
    (128, 192): (128, 192),
    (256, 191): (128, 96),
    (256, 193): (128, 96),
}

SCRIPT = """
import { readFileSync, writeFileSync } from "fs";
import { prepare, decode } from "./decode.mjs";
const { meta, sizes, channels } = JSON.parse(readFileSync("task.json"));
const floats = (name) => new Float32Array(new Uint8Array(readFileSync(name)).buffer);
const results = sizes.map(([height, width], place) => {
  const pixels = { data: readFileSync(`${place}.pixels`), width, height };
  const { image, size } = prepare(pixels, meta);
  writeFileSync(`${place}.input`, image);
  const detections = decode(floats("scores"), floats("masks"), meta, [height, width]);
  detections.forEach(({ mask }, number) => writeFileSync(`${place}.${number}.mask`, mask));
  return { size, detections: detections.map(({ mask, ...detection }) => detection) };
});
writeFileSync("results.json", JSON.stringify(results));
"""


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def tensors():
    """Scores [1,Q,K] and smooth mask logits [1,Q,h,w]; every other mask is nearly that before."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(1, 24, 3, generator=generator)
    scores[0, 9, 0] = scores[0, 9].max()  # ties: the first class, the first query
    scores[0, 11] = scores[0, 10]
    noise = torch.randn(1, 24, 4, 5, generator=generator)
    noise[:, 1::2] = noise[:, ::2] + 0.1 * noise[:, 1::2]
    noise[:, 4] = -1  # empty
    return scores, F.interpolate(noise, (16, 24), mode="bicubic").contiguous()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images, tensors):
    """What node made of the images and tensors."""
    folder = tmp_path_factory.mktemp("node")
    # As .mjs every version of node takes it for a module.
    shutil.copyfile(web_page.EXPORTED / "decode.js", folder / "decode.mjs")
    (folder / "task.json").write_text(json.dumps({"meta": META, "sizes": list(SIZES)}))
    for name, tensor in zip(("scores", "masks"), tensors):
        (folder / name).write_bytes(tensor.numpy().tobytes())
    for place, image in enumerate(images):
        if place % 2:  # as ImageData has it
            image = np.concatenate([image, np.full_like(image[..., :1], 255)], 2)
        (folder / f"{place}.pixels").write_bytes(image.tobytes())
    command = ["node", "--input-type=module", "--eval", SCRIPT]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def test_images_are_resized_and_padded_to_the_same_bytes(folder, images):
    results = json.loads((folder / "results.json").read_text())
    for place, (image, size) in enumerate(zip(images, SIZES.values())):
        assert tuple(results[place]["size"]) == size
        canvas = np.full((META["height"], META["width"], 3), np.round(META["pad_colour"]), np.uint8)
        small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        canvas[: size[0], : size[1]] = small
        found = np.frombuffer((folder / f"{place}.input").read_bytes(), np.uint8)
        assert np.array_equal(found.reshape(canvas.shape), canvas)


def test_detections_are_those_of_the_post_processing(folder, tensors):
    scores, masks = tensors

    def final(outputs):
        return outputs["class_logits"], torch.ones(24, dtype=torch.bool)

    limit = META["config"]["max_detections"]
    ones = lambda masks, *_: masks.new_ones(len(masks))  # noqa: E731
    postprocess = Postprocess(final, 0.5, limit, ones)
    padded = META["height"], META["width"]
    outputs = {"class_logits": scores, "mask_logits": masks}
    results = json.loads((folder / "results.json").read_text())
    num_detections = 0
    for place, (orig_size, size) in enumerate(SIZES.items()):
        (expected,) = postprocess(outputs, [(padded, size, orig_size)], META["threshold"])
        detections = results[place]["detections"]
        num_detections += len(detections)
        assert [one["query"] for one in detections] == expected["query_idx"].tolist()
        assert [one["index"] for one in detections] == expected["labels"].tolist()
        assert [one["score"] for one in detections] == expected["scores"].tolist()
        for number, detection in enumerate(detections):
            category = META["categories"][detection["index"]]
            assert (detection["id"], detection["name"]) == (category["id"], category["name"])
            left, top, right, bottom = detection["box"]
            mask = np.zeros(orig_size, bool)
            content = np.frombuffer((folder / f"{place}.{number}.mask").read_bytes(), bool)
            mask[top:bottom, left:right] = content.reshape(bottom - top, right - left)
            assert detection["area"] == mask.sum()
            right_mask = expected["masks"][number].numpy()
            # Sums in another order may differ where a logit is nearly at the cut.
            assert (mask != right_mask).sum() <= 2e-4 * mask.size
            assert detection["box"] == rle.boxes(rle.encode(mask[None]))[0].tolist()
    assert num_detections > 40
    assert (scores.amax(-1) > META["threshold"]).sum() > limit
    assert len(results[5]["detections"]) < limit - 1  # one is empty, others are duplicates
