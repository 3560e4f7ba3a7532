"""data/loaders.py: the order of images is a pure function of (seed, step)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import loaders, seeds
from data.batch import collate
from data.dataset import CocoDataset
from data.errors import InputError
from data.presets import EvalPreset, TrainPreset

CANVASES = [(64, 64), (64, 128), (128, 64)]
RATIOS = (1.33, 1, 0.75, 2, 1.33)


@pytest.fixture
def dataset(tiny_coco):
    return CocoDataset(tiny_coco.json, tiny_coco.images)


def batches(dataset, preset=None, **keywords):
    keywords = {"batch_size": 2, "stop_step": 5, "seed": 3, "canvases": CANVASES} | keywords
    return list(loaders.train_loader(dataset, preset or TrainPreset(), **keywords))


def assert_same(some, others):
    for a, b in zip(some, others, strict=True):
        for name in ("images", "labels", "masks", "ignore"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        for name in ("counts", "image_ids", "sizes", "orig_sizes"):
            assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize("preset", [TrainPreset(), TrainPreset(copy_paste=0.7)])
def test_workers_and_resuming_change_nothing(dataset, preset):
    alone = batches(dataset, preset)
    assert_same(alone, batches(dataset, preset, workers=2))
    assert_same(alone[3:], batches(dataset, preset, start_step=3))
    assert_same(alone[3:], batches(dataset, preset, start_step=3, workers=1))
    again = batches(dataset, preset, seed=4)
    assert not torch.equal(alone[0].images, again[0].images)


def test_starting_later_with_accumulation(dataset):
    whole = batches(dataset, accumulate=2)
    assert_same(whole[4:], batches(dataset, accumulate=2, start_step=2))
    assert batches(dataset, start_step=5) == []


def test_loading_leaves_the_random_state_alone(dataset):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(dataset)
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_is_another_order(dataset):
    ids = [[i for b in batches(dataset, seed=seed, stop_step=9) for i in b.image_ids]
           for seed in range(3)]  # fmt: skip
    assert ids[0] != ids[1] != ids[2]


def test_the_same_image_has_other_draws_in_each_epoch(dataset):
    found = {}
    for batch in batches(dataset, stop_step=6, canvases=[(64, 64)]):
        for image, id_ in zip(batch.images, batch.image_ids, strict=True):
            found.setdefault(id_, []).append(image)
    assert all(len(images) == 2 for images in found.values())
    assert not any(torch.equal(*images) for images in found.values())


@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 30),
    batch_size=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_each_epoch_sees_each_image_once(images, batch_size, accumulate, world_size, seed):
    per_step = batch_size * accumulate * world_size
    ratios = (RATIOS * images)[:images]
    samplers = [
        loaders.TrainSampler(
            ratios, batch_size, accumulate, seed, range(7), CANVASES, rank, world_size
        )
        for rank in range(world_size)
    ]
    lists = [list(sampler) for sampler in samplers]
    assert all(len(one) == len(sampler) for one, sampler in zip(lists, samplers, strict=True))
    seen = []
    for step in range(7):
        micro = slice(step * accumulate, (step + 1) * accumulate)
        keys = [key for one in lists for batch in one[micro] for key in batch]
        assert len(keys) == per_step and len({key.canvas for key in keys}) == 1
        seen += sorted((key.epoch, key.index) for key in keys)
    whole = 7 * per_step // images
    for epoch in range(whole):
        assert sorted(i for e, i in seen if e == epoch) == list(range(images))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    "split", [{"batch_size": 4, "accumulate": 2}, {"batch_size": 2, "accumulate": 4}]
)
def test_a_step_holds_the_same_images_however_it_is_cut(split):
    def step_of(step, world_size=1, **keywords):
        samplers = [
            loaders.TrainSampler((RATIOS * 5)[:23], seed=1, steps=range(9), canvases=CANVASES,
                                 rank=rank, world_size=world_size, **keywords)
            for rank in range(world_size)
        ]  # fmt: skip
        micros = range(keywords["accumulate"])
        return sorted(key for one in samplers for micro in micros for key in one.keys(step, micro))

    for step in range(9):
        whole = step_of(step, batch_size=8, accumulate=1)
        assert step_of(step, **split) == whole
        assert step_of(step, world_size=2, batch_size=4, accumulate=1) == whole


def test_canvases_are_multiples_of_64():
    for image_size in (32, 64, 70, 100, 320, 512, 640):
        for height, width in loaders.train_canvases(image_size):
            assert height % 64 == 0 and width % 64 == 0 and min(height, width) >= 64
    assert loaders.train_canvases(320) == [(320, 448), (448, 320), (384, 384)]


def test_first_images_are_those_of_the_first_epoch(dataset):
    first = loaders.first_images(len(dataset), seed=3, count=4)
    ids = [
        i for batch in batches(dataset, stop_step=2, canvases=[(64, 64)]) for i in batch.image_ids
    ]
    assert [dataset.images[i].id for i in first] == ids


def test_similar_images_share_a_canvas_that_they_fill():
    """100 images, 3:4, 4:3 and square ones mixed: all but a few steps hold one shape."""
    ratios = [(4 / 3, 3 / 4, 4 / 3, 1)[i % 4] for i in range(100)]
    canvases = [(448, 640), (320, 448), (448, 320), (384, 384)]
    sampler = loaders.TrainSampler(ratios, 4, 1, 0, range(25), canvases)
    best = {4 / 3: canvases[:2], 3 / 4: canvases[2:3], 1: canvases[3:]}
    found, mixed = set(), 0
    for keys in sampler:
        shapes = {ratios[key.index] for key in keys}
        if len(shapes) > 1:
            mixed += 1
        else:
            assert keys[0].canvas in best[shapes.pop()]
            found.add(keys[0].canvas)
    assert found == set(canvases) and mixed <= 4


def test_batches_of_few_images_of_many_shapes_are_mixed_anew():
    ratios = [0.6 + 0.025 * i for i in range(48)]
    sampler = loaders.TrainSampler(ratios, 4, 1, 0, range(240), loaders.train_canvases(256))
    assert len({frozenset(key.index for key in keys) for keys in sampler}) > 200


def test_training_on_what_evaluation_sees(dataset):
    preset = EvalPreset(48)
    canvas = loaders.covering_canvas(dataset, preset)
    assert canvas == (64, 128)
    (batch,) = batches(dataset, preset, batch_size=6, stop_step=1, canvases=[canvas])
    evaluated = {
        id_: (image, size)
        for b in loaders.eval_loader(dataset, preset, batch_size=1)
        for image, id_, size in zip(b.images, b.image_ids, b.sizes, strict=True)
    }
    for image, id_, size in zip(batch.images, batch.image_ids, batch.sizes, strict=True):
        same, same_size = evaluated[id_]
        assert size == same_size
        assert torch.equal(image[:, : size[0], : size[1]], same[:, : size[0], : size[1]])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once(dataset, batch_size, workers):
    preset = EvalPreset(48)
    found = {}
    for batch in loaders.eval_loader(dataset, preset, batch_size=batch_size, workers=workers):
        assert len(batch.images) <= batch_size
        for id_, orig_size in zip(batch.image_ids, batch.orig_sizes, strict=True):
            assert preset.padded_size(*orig_size) == tuple(batch.images.shape[-2:])
            assert id_ not in found
            found[id_] = orig_size
    assert found == {r.id: (r.height, r.width) for r in dataset.images}


def test_evaluation_of_some_images(dataset):
    some = loaders.eval_loader(dataset, EvalPreset(48), batch_size=1, indices=[4, 2])
    assert sorted(i for batch in some for i in batch.image_ids) == [5, 40]
    assert len(some) == 2


def test_objects_of_the_crowd_are_only_ignored(dataset):
    crowded = dataset.subset([1])
    (batch,) = loaders.eval_loader(crowded, EvalPreset(48), batch_size=1)
    (target,) = batch.to("cpu").targets
    assert target["labels"].tolist() == [1]
    assert target["ignore"][40:60, 5:45].all() and target["ignore"].sum() == 20 * 40


# --- copy-paste -----------------------------------------------------------------------------------

ALWAYS = TrainPreset(copy_paste=1.0, scale=(0.5, 1.0))  # whole images: no object is cropped away
NEVER = TrainPreset(scale=(0.5, 1.0))


def images(batches_):
    """(image with padding, number of objects) of one image after another."""
    return [pair for b in batches_ for pair in zip(b.images, b.counts, strict=True)]


def watched(dataset, monkeypatch):
    """The indices of the images that are read from now on."""
    reads, read = [], dataset.read
    monkeypatch.setattr(dataset, "read", lambda index: reads.append(index) or read(index))
    return reads


@pytest.mark.parametrize("preset", [TrainPreset(), TrainPreset(copy_paste=1e-9)])
def test_images_without_pasting_rest_on_these_seeds(dataset, preset):
    """The use number 3 is written down: runs that are resumed draw the same samples as before."""
    index_of = {record.id: index for index, record in enumerate(dataset.images)}
    for position, batch in enumerate(batches(dataset, preset, batch_size=1, stop_step=12)):
        index = index_of[batch.image_ids[0]]
        generator = seeds.generator(3, 3, position // len(dataset), index)
        expected = preset(*dataset.read(index), tuple(batch.images.shape[-2:]), generator)
        assert_same([batch], [collate([expected])])


def test_pasting_changes_nothing_else(dataset):
    """At one half, half of the images are those of never, half those of always."""
    half = TrainPreset(copy_paste=0.5, scale=(0.5, 1.0))
    never, some, always = (
        images(batches(dataset, preset, stop_step=100)) for preset in (NEVER, half, ALWAYS)
    )
    plain = sum(torch.equal(a[0], b[0]) for a, b in zip(never, some, strict=True))
    pasted = sum(torch.equal(a[0], b[0]) for a, b in zip(always, some, strict=True))
    assert plain + pasted == len(some) == 200 and 75 < plain < 125
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(never, always, strict=True))


def test_pasted_objects_come_from_all_other_images_that_have_some(dataset, monkeypatch):
    """Image 2 has none."""
    reads = watched(dataset, monkeypatch)
    batches(dataset, ALWAYS, batch_size=1, stop_step=240)
    pairs = list(zip(reads[::2], reads[1::2], strict=True))
    expected = {(a, b) for a in range(6) for b in (0, 1, 3, 4, 5) if a != b}
    assert len(pairs) == 240 and set(pairs) == expected
    assert max(pairs.count(pair) for pair in expected) < 25  # 8 or 10 are expected


def test_no_other_image_with_objects(dataset, monkeypatch):
    content = dataset.ground_truth()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.warns(UserWarning, match="will not be learned"):
        crowds = CocoDataset(content, dataset.folder)
    for alone in (dataset.subset([0]), dataset.subset([2]), crowds):
        reads = watched(alone, monkeypatch)
        assert_same(batches(alone, NEVER), batches(alone, ALWAYS))
        assert len(reads) == 20
    empty_and_one = dataset.subset([2, 4])
    for batch in batches(empty_and_one, ALWAYS):
        counts = dict(zip(batch.image_ids, batch.counts, strict=True))
        assert 1 <= counts[5] <= 2 and counts[40] == 2


@pytest.mark.parametrize("preset", [TrainPreset(), ALWAYS])
def test_batches_meet_the_contract(dataset, preset):
    for packed in batches(dataset, preset, stop_step=12):
        batch = packed.to("cpu")
        assert batch.images.dtype == torch.float32 and 0 <= batch.images.min()
        assert batch.images.max() <= 1
        for image, padding, target in zip(batch.images, batch.padding, batch.targets, strict=True):
            assert not image[:, padding].any() and not target["masks"][:, padding].any()
            assert target["masks"].shape == (len(target["labels"]), *padding.shape)
            assert not target["ignore"][padding].any()
            assert all(label in range(4) for label in target["labels"].tolist())
            assert (target["masks"].flatten(1).sum(1) >= 4).all()
            assert preset is not ALWAYS or (target["masks"].sum(0) <= 1).all()


# --- mistakes and seeds ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_ends_in_one_sentence(dataset, workers):
    """Also where its objects would be pasted onto the only other one."""
    two = dataset.subset([0, 4])
    first = loaders.first_images(2, seed=3, count=1)[0]
    path = two.path(1 - first)
    path.write_bytes(path.read_bytes()[:100])
    keywords = {"batch_size": 1, "workers": workers}
    assert len(batches(two, NEVER, stop_step=1, **keywords)) == 1
    for preset, stop_step in ((ALWAYS, 1), (NEVER, 2)):
        with pytest.raises(InputError, match=rf"{path.name} cannot be read") as caught:
            batches(two, preset, stop_step=stop_step, **keywords)
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_seeds_are_well_spread():
    values = {seeds.mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(values) == 8000 and all(0 <= value < 2**63 for value in values)
    assert seeds.mix(1, 2) != seeds.mix(2, 1) and seeds.mix(1) != seeds.mix(1, 0)
    bits = np.array([[value >> k & 1 for k in range(63)] for value in values])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.05
    assert seeds.mix(0, 1, 2) == seeds.mix(0, 1, 2) == EXPECTED_SEED


EXPECTED_SEED = 8825289091277911490  # written down, because resuming on another machine rests on it
