"""Post-processing: sizes, scores, thresholds, chunks."""

import numpy as np
import pytest
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch.utils.flop_counter import FlopCounterMode

from data import rle
from mobileinst import zoo
from mobileinst.set_prediction import postprocess as module
from mobileinst.set_prediction.postprocess import (
    Postprocess,
    Resize,
    grid_quality,
    grid_stability,
    rank_by_class,
    rank_by_objectness,
)

SIZES = ((64, 96), (60, 90), (120, 180))


def make_outputs(batch=1, queries=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 2, 3, generator=generator)
    return {
        "class_logits": torch.randn(batch, queries, classes, generator=generator),
        "objectness": torch.randn(batch, queries, 1, generator=generator),
        "mask_logits": torch.nn.functional.interpolate(coarse, size=(8, 12), mode="bilinear"),
        "aux": [],
    }


def upsample_masks(mask_logits, padded, size, orig_size):
    """Whole mask logits at the original size: [M,h,w] -> [M,h0,w0]."""
    sides = zip(mask_logits.shape[-2:], padded, size, orig_size)
    rows, columns = (Resize.of(*side).matrix for side in sides)
    return rows.T @ (mask_logits @ columns)


def boxes_from_masks(masks):
    boxes = torch.zeros(len(masks), 4)
    some = masks.flatten(1).any(1)
    boxes[some] = torchvision.ops.masks_to_boxes(masks[some])  # its far edges are inclusive
    boxes[some, 2:] += 1
    return boxes


def test_resizing_by_matrices_is_interpolation():
    logits, (padded, size, orig_size) = make_outputs()["mask_logits"][0], SIZES
    expected = torch.nn.functional.interpolate(logits[None], size=padded, mode="bilinear")
    expected = expected[..., : size[0], : size[1]]
    expected = torch.nn.functional.interpolate(expected, size=orig_size, mode="bilinear")[0]
    torch.testing.assert_close(upsample_masks(logits, *SIZES), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [SIZES, ((64, 96), (33, 70), (17, 300)), ((64, 96),) * 3])
def test_masks_of_single_cells_and_in_the_padding_are_those_of_whole_images(sizes):
    logits = torch.full((1, 98, 8, 12), -2.0)
    logits.view(98, -1).fill_diagonal_(6.0)  # the last two are empty
    outputs = make_outputs(queries=98) | {"mask_logits": logits}
    [result] = Postprocess(rank_by_objectness, 0.5, 1000)(outputs, [sizes])
    whole = upsample_masks(logits[0], *sizes) > 0
    assert set(result["query_idx"].tolist()) == {i for i, mask in enumerate(whole) if mask.any()}
    assert torch.equal(result["masks"], whole[result["query_idx"]])
    assert torch.equal(result["boxes"], boxes_from_masks(result["masks"]))


@pytest.mark.parametrize("orig_size", [(1, 1), (3, 4), (4, 5), (7, 6), (2, 11)])
def test_masks_of_images_that_were_enlarged(orig_size):
    """In the middle of the grid there are cells that touch no pixel."""
    corners = torch.cartesian_prod(*map(torch.arange, (8, 12)))  # of rectangles: [96,2]
    y, x = torch.arange(8)[:, None], torch.arange(12)
    masks = [(y >= top) & (x >= left) & (y < top + 4) & (x < left + 5) for top, left in corners]
    logits = torch.stack(masks)[None] * 8.0 - 4
    sizes = ((64, 96), (64, 90), orig_size)
    outputs = make_outputs(queries=96) | {"mask_logits": logits}
    [result] = Postprocess(rank_by_objectness, 0.5, 1000, duplicate_iou=1.0)(outputs, [sizes])
    whole = upsample_masks(logits[0], *sizes) > 0
    assert set(result["query_idx"].tolist()) == {i for i, mask in enumerate(whole) if mask.any()}
    assert torch.equal(result["masks"], whole[result["query_idx"]])


def test_score_is_the_root_of_class_and_objectness_times_mask_quality():
    outputs = make_outputs()
    outputs["mask_logits"] = torch.full((1, 6, 8, 12), 2.0)
    [result] = Postprocess(rank_by_objectness, duplicate_iou=1)(outputs, [SIZES])
    quality = torch.tensor(2.0).sigmoid()
    wanted = []
    for query in range(6):
        for label in range(3):
            class_prob = outputs["class_logits"][0, query, label].sigmoid()
            score = (class_prob * outputs["objectness"][0, query, 0].sigmoid()).sqrt() * quality
            wanted.append((score.item(), label))
    wanted.sort(reverse=True)
    assert result["scores"].tolist() == pytest.approx([score for score, _ in wanted])
    assert result["labels"].tolist() == [label for _, label in wanted]


def test_stability_is_the_iou_of_a_higher_and_a_lower_threshold():
    padded, size = (64, 96), (40, 96)
    logits = torch.full((4, 16, 24), -9.0)  # the third is empty, the fourth below the cut
    logits[0, 2:6, 4:10] = 9.0
    logits[1] = torch.linspace(-5, 5, 24)
    logits[3] = -1.5
    fine = torchvision.transforms.v2.functional.resize(logits, [32, 48], antialias=False)[:, :20]
    smaller, larger = (fine > 0.3 + 2).sum((1, 2)), (fine > 0.3 - 2).sum((1, 2))
    assert smaller[0] > 0 and larger[2] == 0 < larger[3]
    expected = (1 + smaller) / (1 + larger)
    expected[2:] = 0  # no cell is above the threshold
    assert grid_stability(logits, padded, size, 0.3).tolist() == pytest.approx(expected.tolist())


def test_stable_scores_are_the_root_of_the_class_times_the_stability():
    process = zoo.build("mask2former_mobilenet_v2", 3, stable_scores=True)[2]
    outputs = {"class_logits": torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))}
    outputs["mask_logits"] = torch.full((1, 6, 8, 12), -9.0)
    for query in range(6):  # apart, so that none is a duplicate
        outputs["mask_logits"][0, query, :, 2 * query : 2 * query + 2] = 9.0
    [result] = process(outputs, [SIZES])
    stability = grid_stability(outputs["mask_logits"][0], *SIZES[:2], process.cut)
    expected = outputs["class_logits"][0].softmax(-1)[:, :3].sqrt() * stability[:, None]
    expected = expected.flatten().sort(descending=True).values
    assert result["scores"].tolist() == pytest.approx(expected.tolist())


def test_every_answer_has_the_mask_of_its_query():
    outputs = make_outputs(seed=3)
    outputs["mask_logits"][0, 2] = -9.0  # an empty one among them
    [result] = Postprocess(rank_by_objectness, max_detections=11)(outputs, [SIZES])
    [coded] = Postprocess(rank_by_objectness, max_detections=11)(outputs, [SIZES], encode=list)
    cut = torch.logit(torch.tensor(0.45))
    quality = grid_quality(outputs["mask_logits"][0], *SIZES[:2], cut)
    scores, _ = rank_by_objectness({k: v[0] for k, v in outputs.items() if k != "aux"})
    scores = (scores * quality[:, None]).flatten()
    whole = upsample_masks(outputs["mask_logits"][0], *SIZES) > cut
    for rank, pair in enumerate(scores.argsort(descending=True)[:11].tolist()):
        query, label = divmod(pair, 3)
        assert result["scores"][rank] == scores[pair] and result["labels"][rank] == label
        assert torch.equal(result["masks"][rank], whole[query])
        assert torch.equal(coded["masks"][rank], whole[query])
    assert torch.equal(result["boxes"], boxes_from_masks(result["masks"]))


def test_in_use_a_query_answers_once_with_its_best_class():
    outputs = make_outputs()
    outputs["mask_logits"] = torch.full((1, 6, 8, 12), 2.0)
    [result] = Postprocess(rank_by_objectness, duplicate_iou=1)(outputs, [SIZES], threshold=0.0)
    best = outputs["class_logits"][0].sigmoid().max(-1)
    scores = (best.values * outputs["objectness"][0, :, 0].sigmoid()).sqrt()
    order = scores.argsort(descending=True)
    assert result["labels"].tolist() == best.indices[order].tolist()


def test_without_a_threshold_every_query_with_a_mask_is_kept():
    outputs = make_outputs()
    outputs["class_logits"] -= 12  # scores far below any threshold of use
    outputs["mask_logits"] = torch.full((1, 6, 8, 12), 2.0)
    outputs["mask_logits"][0, 3] = -2.0  # an empty mask
    [result] = Postprocess(rank_by_objectness, duplicate_iou=1)(outputs, [SIZES])
    assert len(result["scores"]) == 5 * 3
    [result] = Postprocess(rank_by_objectness)(outputs, [SIZES], threshold=0.3)
    assert len(result["scores"]) == 0
    assert result["masks"].shape == (0, 120, 180)
    assert result["boxes"].shape == (0, 4)


@pytest.mark.parametrize("pixels", [1, 50_000, 10**9])
def test_chunks_change_nothing(monkeypatch, pixels):
    outputs = make_outputs(batch=2)
    [first, second] = Postprocess(rank_by_objectness)(outputs, [SIZES] * 2)
    monkeypatch.setattr(module, "CHUNK_PIXELS", pixels)
    encoded = Postprocess(rank_by_objectness)(outputs, [SIZES] * 2, encode=list)
    for dense, result in zip((first, second), encoded):
        assert torch.equal(torch.stack(result["masks"]), dense["masks"])
        assert torch.equal(result["boxes"], dense["boxes"])


def plain_mask2former(outputs, sizes, most):
    """(score, label, mask) of the likeliest query and class pairs, one at a time, best first."""
    padded, size, orig_size = sizes
    probs = outputs["class_logits"][0].softmax(-1)
    pairs = [(q, k) for q in range(probs.shape[0]) for k in range(probs.shape[1] - 1)]
    pairs = sorted(pairs, key=lambda pair: -probs[pair].item())[:most]
    found = []
    for query, label in pairs:
        logits = outputs["mask_logits"][0, query][None, None]
        logits = torch.nn.functional.interpolate(logits, padded, mode="bilinear")
        logits = logits[..., : size[0], : size[1]]
        logits = torch.nn.functional.interpolate(logits, orig_size, mode="bilinear")[0, 0]
        if (logits > 0).any():
            sure = logits.sigmoid()[logits > 0].mean()
            found.append(((probs[query, label] * sure).item(), label, logits > 0))
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize("most", [1, 7, 100])
@pytest.mark.parametrize("encode", [None, list])
def test_ranking_by_class_agrees_with_a_plain_restatement(most, encode):
    outputs = make_outputs()
    outputs["mask_logits"][0, 4] = -3.0  # an empty mask
    process = Postprocess(rank_by_class, 0.5, most, None)
    [result] = process(outputs, [SIZES], encode=encode)
    expected = plain_mask2former(outputs, SIZES, most)
    assert len(result["masks"]) == len(result["scores"]) == len(expected)
    assert result["labels"].tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(result["scores"], torch.tensor([score for score, _, _ in expected]))
    for mask, box, (_, _, full) in zip(result["masks"], result["boxes"], expected):
        assert (mask != full).float().mean() < 1e-3  # rounding at the border
        torch.testing.assert_close(box, boxes_from_masks(mask[None])[0])


def test_queries_without_an_object_are_kept_unless_a_threshold_is_asked_for():
    outputs = make_outputs(queries=3, classes=3)
    outputs["class_logits"] = torch.tensor([[[1.0, 0.0, 1.2], [3.0, 0.0, 0.0], [0.0, 0.9, 1.0]]])
    outputs["mask_logits"] = torch.full((1, 3, 8, 12), 2.0)
    process = Postprocess(rank_by_class, 0.5, quality=None, duplicate_iou=1)
    [every] = process(outputs, [SIZES])
    assert len(every["scores"]) == 6 and every["best"].tolist() == [True] + 5 * [False]
    [result] = process(outputs, [SIZES], threshold=0.3)
    prob = outputs["class_logits"][0, 1].softmax(0)[0] * torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(result["scores"], prob[None])
    [result] = process(outputs, [SIZES], threshold=prob.item() + 0.01)  # only known at full size
    assert result["masks"].shape == (0, 120, 180)


def test_in_use_the_limit_counts_one_answer_for_each_query():
    outputs = make_outputs()
    outputs["class_logits"] = 5 + outputs["class_logits"]  # every class of every query is likely
    outputs["mask_logits"] = torch.full((1, 6, 8, 12), 2.0)
    used = Postprocess(rank_by_objectness, max_detections=6, duplicate_iou=1)(
        outputs, [SIZES], threshold=0.1
    )
    assert len(used[0]["scores"]) == 6


@pytest.mark.parametrize("quality", [grid_quality, None])
@pytest.mark.parametrize("largest", [13, 60])
def test_a_hundred_answers_of_a_photo(quality, largest):
    """Small masks, and such that cover half of the image: those of whole images bit for bit, with
    less than half of the multiply-adds; their quality is sampled.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    y, x = (torch.rand(2, 100, 1, 1, generator=generator) * 90 - 5).unbind()
    radius = largest * (1 - 0.9 * torch.rand(100, 1, 1, generator=generator) ** (largest / 13))
    noise = 0.3 * torch.randn(100, 60, 80, generator=generator)
    outputs = make_outputs(queries=100)
    outputs["mask_logits"] = (radius - (rows - y).hypot(columns - x) + noise)[None]
    sizes = ((480, 640), (470, 626), (1500, 2000))
    process = Postprocess(rank_by_objectness, quality=quality, duplicate_iou=1)
    with FlopCounterMode(display=False) as needed:
        [result] = process(outputs, [sizes], threshold=0.0, encode=rle.encode)
    with FlopCounterMode(display=False) as whole_image:
        upsample_masks(outputs["mask_logits"][0, :1], *sizes)
    most = whole_image.get_total_flops() * len(result["masks"])
    assert needed.get_total_flops() < most / 2
    assert len(result["masks"]) >= 75
    plain, _ = rank_by_objectness({k: v[0] for k, v in outputs.items() if k != "aux"})
    for place in range(0, 75, 5):
        query = result["query_idx"][place]
        whole = upsample_masks(outputs["mask_logits"][0, query][None], *sizes)
        inside = whole > process.cut
        coded = coco_mask.encode(np.asfortranarray(inside[0].numpy().astype(np.uint8)))
        assert result["masks"][place] == coded
        assert torch.equal(result["boxes"][place], boxes_from_masks(inside)[0])
        if quality is None:
            sure = whole[inside].sigmoid().double().mean() * plain[query].amax()
            assert result["scores"][place] == pytest.approx(sure.item(), abs=1e-4)


def test_a_duplicate_of_a_better_answer_of_its_class_is_dropped():
    logits = torch.full((1, 5, 10, 12), -4.0)
    logits[0, :, 1:6, 1:5] = 4.0  # 20 cells
    logits[0, 1, 6, 1:3] = 4.0  # 22: IoU .909 with the first
    logits[0, 3, 1:6, 5:7] = 4.0  # 30: IoU .667 with the first, .625 with the second
    logits[0, 4, 1:6, 1:5] = -4.0
    logits[0, 4, 1:6, 7:11] = 4.0  # elsewhere
    classes = torch.full((1, 5, 2), -6.0)
    for query, (label, value) in enumerate([(0, 3), (0, 2.5), (1, 2), (0, 1.5), (0, 1)]):
        classes[0, query, label] = value  # the third has the mask of the first in another class
    outputs = {"class_logits": classes, "objectness": torch.ones(1, 5, 1), "mask_logits": logits}
    [used] = Postprocess(rank_by_objectness)(outputs, [SIZES], threshold=0.3)
    [every] = Postprocess(rank_by_objectness)(outputs, [SIZES])
    [off] = Postprocess(rank_by_objectness, duplicate_iou=1)(outputs, [SIZES], threshold=0.3)
    assert used["query_idx"].tolist() == [0, 2, 3, 4] and used["best"].all()
    assert off["query_idx"].tolist() == [0, 1, 2, 3, 4]
    kept = {label: set(every["query_idx"][every["labels"] == label].tolist()) for label in (0, 1)}
    assert kept == {0: {0, 3, 4}, 1: {2, 3, 4}}
    assert every["query_idx"][every["best"]].tolist() == [0, 2, 3, 4]
