"""data/batch.py: what goes into a batch comes out of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import Sample, collate


def sample(rng, count, size, canvas, image_id=5):
    height, width = size
    return Sample(
        image=torch.from_numpy(rng.integers(1, 256, (3, height, width), dtype=np.uint8)),
        masks=rng.random((count, height, width)) < 0.5,
        ignore=rng.random((height, width)) < 0.2,
        labels=rng.integers(0, 20, count),
        image_id=image_id,
        orig_size=(2 * height, 2 * width),
        canvas=canvas,
    )


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    canvas=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    seed=st.integers(0, 1000),
)
def test_packed_and_unpacked_are_the_same(counts, canvas, seed):
    rng = np.random.default_rng(seed)
    sizes = [tuple(int(rng.integers(1, side + 1)) for side in canvas) for _ in counts]
    samples = [
        sample(rng, count, size, canvas, image_id=i)
        for i, (count, size) in enumerate(zip(counts, sizes, strict=True))
    ]
    batch = collate(samples).to("cpu")
    assert batch.images.shape == (len(counts), 3, *canvas)
    assert batch.images.dtype == torch.float32
    assert batch.padding.dtype == torch.bool
    for i, (one, target) in enumerate(zip(samples, batch.targets, strict=True)):
        height, width = one.size
        assert torch.equal(batch.images[i, :, :height, :width], one.image.float() / 255)
        assert batch.images[i].count_nonzero() == one.image.numel()
        inside = ~batch.padding[i]
        assert inside[:height, :width].all() and inside.sum() == height * width
        assert target["masks"].shape == (counts[i], *canvas)
        assert target["masks"].dtype == target["ignore"].dtype == torch.bool
        for name, dense in (("masks", one.masks), ("ignore", one.ignore)):
            assert (target[name][..., :height, :width].numpy() == dense).all()
            assert not target[name][..., ~inside].any()
        assert target["labels"].dtype == torch.int64
        assert target["labels"].tolist() == one.labels.tolist()
        assert (target["image_id"], target["size"]) == (i, one.size)
        assert target["orig_size"] == one.orig_size
        assert target["has_ignore"] == one.ignore.any()
    assert batch.sizes() == [(canvas, one.size, one.orig_size) for one in samples]


def test_a_batch_without_any_object():
    rng = np.random.default_rng(0)
    batch = collate([sample(rng, 0, (20, 30), (64, 64)) for _ in range(2)]).to("cpu")
    for target in batch.targets:
        assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
        assert target["masks"].shape == (0, 64, 64) and target["masks"].dtype == torch.bool


def test_a_batch_has_one_canvas():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one canvas"):
        collate([sample(rng, 1, (20, 30), (64, side)) for side in (64, 128)])


def test_a_batch_moves_as_a_whole():
    rng = np.random.default_rng(0)
    packed = collate([sample(rng, 2, (20, 30), (64, 64))])
    moved = packed.to("meta")
    assert moved.images.is_meta and moved.padding.is_meta
    assert all(moved.targets[0][name].is_meta for name in ("labels", "masks", "ignore"))
    assert moved.targets[0]["image_id"] == 5
