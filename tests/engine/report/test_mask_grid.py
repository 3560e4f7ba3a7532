"""Ground truth through the mask grid and back: AP falls as the cells grow."""

import numpy as np
from PIL import Image

from data import rle
from data.dataset import CocoDataset
from data.presets import EvalPreset
from engine.report.mask_grid import mask_grid_scores
from mobileinst.set_prediction.postprocess import Postprocess, rank_by_objectness

SIZE = (128, 160)


def small_set(folder):
    """Discs of many sizes with a border of void, and an image without objects."""
    generator = np.random.default_rng(0)
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    images, annotations = [], []
    for image_id in range(4):
        Image.new("RGB", SIZE[::-1]).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 128, "width": 160})
        border = np.zeros(SIZE, bool)
        for radius in generator.uniform(6, 30, 3 if image_id else 0):
            centre = generator.uniform((30, 30), (98, 130))
            distance = np.hypot(y - centre[0], x - centre[1])
            border |= (distance >= radius) & (distance < radius + 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 2,
                    "segmentation": rle.to_json(rle.encode((distance < radius)[None])[0]),
                    "area": 1,
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": 0,
                }
            )
        mine = [a["segmentation"] for a in annotations if a["image_id"] == image_id]
        border &= ~rle.decode(mine, SIZE).any(0)
        images[-1]["void"] = rle.to_json(rle.encode(border[None])[0])
    categories = [{"id": 2, "name": "disc"}]
    return CocoDataset(
        {"images": images, "categories": categories, "annotations": annotations}, folder
    )


def test_finer_grids_have_higher_scores(tmp_path):
    dataset, preset = small_set(tmp_path), EvalPreset(128)
    way = Postprocess(rank_by_objectness)
    found = {stride: mask_grid_scores(dataset, preset, way, stride) for stride in (1, 8, 32)}
    assert {scores.objects for scores in found.values()} == {9}
    assert found[1].headline["AP"] > 0.99
    assert 0.5 < found[8].headline["AP"] < found[1].headline["AP"]
    assert found[32].headline["AP"] < found[8].headline["AP"]
    # more input pixels per image: the same as a finer grid.
    assert mask_grid_scores(dataset, EvalPreset(512), way).headline["AP"] > found[8].headline["AP"]
