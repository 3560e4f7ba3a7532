"""Options that follow from the training set, on sets whose numbers are known."""

import numpy as np
import pytest

from data import rle
from data.dataset import CocoDataset
from data.loaders import train_canvases
from engine import train
from engine.datasets import open_splits
from engine.fit import fit_to_data
from engine.options import TrainOptions


@pytest.fixture
def drawn(tmp_path):
    """A function: images, squares per image, their side, more squares of 120 -> a set of images of
    240 x 320, or of another height.
    """

    def drawn(
        images: int, squares: int, side: int, large: int = 0, height: int = 240
    ) -> CocoDataset:
        masks = np.zeros((squares + large, height, 320), dtype=bool)
        masks[squares:, :120, :120] = True
        for k in range(squares):
            top, left = divmod(k, 320 // side)
            masks[k, top * side : (top + 1) * side, left * side : (left + 1) * side] = True
        encoded = [rle.to_json(one) for one in rle.encode(masks)]
        listed = [
            {"id": i, "file_name": f"{i}.png", "height": height, "width": 320}
            for i in range(images)
        ]
        annotations = [
            {"id": 1 + i * len(masks) + k, "image_id": i, "category_id": 1, "segmentation": mask}
            for i in range(images)
            for k, mask in enumerate(encoded)
        ]
        for one in listed:
            (tmp_path / one["file_name"]).touch()
        categories = [{"id": 1, "name": "cell"}]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        return CocoDataset(content, tmp_path)

    return drawn


def options(**given) -> TrainOptions:
    return TrainOptions(recipe="small-pretrained", model="mobileinst_topformer_tiny", **given)


def test_large_objects_in_many_images_change_nothing(drawn):
    opts = options()
    assert fit_to_data(opts, drawn(500, 4, 60)) == {}
    assert opts.plain() == options().plain()


def test_many_small_objects_beside_large_ones(drawn):
    """80 squares of 10 in 240: at 320 they are 13.3 pixels wide, 16 need 384 and are under 24."""
    opts = options()
    reasons = fit_to_data(opts, drawn(500, 80, 10, 10))
    assert opts.set["num_queries"] == 225  # the square above 2.25 · 90: placed queries
    assert opts.set["max_detections"] == 121  # above 1.25 · 90
    assert opts.tiles == 1
    assert opts.image_size == 384 and opts.set["mask_stride"] == 4
    assert opts.set["mask_threshold"] == 0.45
    assert reasons["set.num_queries"] == "up to 90 objects in an image"
    assert reasons["image_size"] == "a quarter of the objects is under 13 pixels at 320"
    assert {opts.origins[name] for name in reasons} == {"data"}
    described = opts.describe({})
    assert "image_size 384" in described.partition("\ndata ")[2].partition("\nmachine")[0]


@pytest.mark.parametrize("side, number, most", [(14, 2, 2.1), (12, 3, 3.0), (8, 3, 3.0)])
def test_small_objects_alone_are_seen_in_windows(drawn, side, number, most):
    """14.9, 12.8 and 8.5 pixels at 256: 1.75 times that in two windows, 2.5 times in three."""
    opts = options()
    reasons = fit_to_data(opts, drawn(500, 90, side))
    assert (opts.tiles, opts.image_size) == (number, 256)
    assert opts.scale == pytest.approx((0.7, most)) and opts.eval_train == 25
    assert opts.eval_every == opts.epochs // 3
    assert reasons["tiles"].startswith("a quarter of the objects is under")


def test_windows_are_no_smaller_than_images_have_pixels_for(drawn, monkeypatch):
    monkeypatch.setattr("engine.tiles.SMALLEST", 121)  # of 240
    opts = options()
    fit_to_data(opts, drawn(500, 90, 12))
    assert (opts.tiles, opts.image_size) == (1, 320)


def test_windows_of_the_user_are_counted(drawn):
    """12.8 pixels at 256 are 22.4 in two windows: the scale is wider, the images as large."""
    opts = options(tiles=2)
    reasons = fit_to_data(opts, drawn(500, 90, 12))
    assert (opts.tiles, opts.image_size, opts.set["mask_stride"]) == (2, 256, 4)
    assert opts.scale == pytest.approx((0.7, 2.1)) and opts.eval_train == 25
    assert reasons["set.mask_stride"].endswith("under 22 pixels in windows")


def test_many_tiny_objects_get_the_largest_images(drawn):
    opts = options()
    fit_to_data(opts, drawn(500, 250, 8, 50))
    assert opts.image_size == 448  # 16 pixels of a side of 8 in 240 need more than twice 240
    assert opts.epochs == options().epochs  # 500 images are enough steps


def test_from_random_values_objects_may_be_half_as_large(drawn):
    """14.9 pixels at 128; 8 are enough, and 12 for masks at stride 8."""
    values = {"recipe": "small", "model": "mobileinst_topformer_tiny"}
    opts = TrainOptions(**values, from_scratch=True)
    fit_to_data(opts, drawn(500, 8, 28, 2))
    assert opts.image_size == 128 and "mask_stride" not in opts.set
    pretrained = TrainOptions(**values)
    fit_to_data(pretrained, drawn(500, 8, 28, 2))
    assert pretrained.image_size == 192 and pretrained.set["mask_stride"] == 4


@pytest.mark.parametrize("squares, side", [(1, 60), (80, 5)])
@pytest.mark.parametrize("given, size", [({}, 192), ({"image_size": 320}, 320)])
def test_small_files_are_not_enlarged_more_than_twice(drawn, given, size, squares, side):
    opts = options(**given)
    fit_to_data(opts, drawn(500, squares, side, 10, height=120))
    assert opts.image_size == size


@pytest.mark.parametrize("side, canvas", [(14, None), (18, train_canvases(256))])
def test_small_objects_in_few_images_keep_their_pixels(drawn, side, canvas):
    """14.9 pixels at 256 are too few, 19.2 are enough with masks at stride 4."""
    opts = options()
    fit_to_data(opts, drawn(20, 8, side, 2))
    assert (opts.image_size, opts.canvas, opts.set["mask_stride"]) == (320, canvas, 4)


def test_few_images_get_more_epochs(drawn):
    opts = options()
    reasons = fit_to_data(opts, drawn(20, 2, 60))
    assert opts.epochs == 440 and opts.eval_every == 73  # 2200 steps of 4
    assert opts.image_size == 320 and opts.canvas == train_canvases(256)
    assert reasons["canvas"] == "20 images: steps count more than pixels"
    assert reasons["epochs"] == "20 images: 2200 steps"
    longer = options(epochs=500)
    fit_to_data(longer, drawn(20, 2, 60))
    assert longer.canvas == opts.canvas and longer.epochs == 500
    pairs = options(batch_size=2)
    assert fit_to_data(pairs, drawn(20, 2, 60))["epochs"] == "20 images: 3492 steps"
    assert pairs.epochs == 350
    most = options(batch_size=2)  # 29 epochs of 240 images are 3480 steps
    assert "canvas" in fit_to_data(most, drawn(240, 2, 60))


def test_the_epochs_count_accumulation(drawn):
    opts = options(batch_size=2, accumulate=2)
    assert fit_to_data(opts, drawn(20, 2, 60))["epochs"] == "20 images: 2200 steps"


def test_the_epochs_count_all_processes(drawn, monkeypatch):
    monkeypatch.setattr("engine.dist.world_size", lambda: 2)
    opts = options(batch_size=4)
    fit_to_data(opts, drawn(20, 2, 60))
    assert opts.epochs == 880  # as one process with batches of 8


def test_what_the_user_gave_stays(drawn):
    given = {"epochs": 3, "image_size": 192, "tiles": 1}
    opts = options(**given, set={"num_queries": 7, "mask_stride": 8})
    fit_to_data(opts, drawn(20, 90, 12))
    assert (opts.epochs, opts.image_size, opts.tiles) == (3, 192, 1)
    assert (opts.set["num_queries"], opts.set["mask_stride"]) == (7, 8)
    assert opts.set["max_detections"] == 121
    assert opts.eval_every == options().eval_every  # not that of epochs that were never chosen
    assert opts.origins["eval_every"] == "recipe"


@pytest.mark.parametrize("stride, threshold", [(4, 0.45), (8, 0.55)])
@pytest.mark.parametrize("side", [10, 60])
def test_the_mask_threshold_follows_the_stride(drawn, side, stride, threshold):
    opts = options(set={"mask_stride": stride, "mask_threshold": 0.55})
    opts.origins |= {"set.mask_stride": "user", "set.mask_threshold": "recipe"}
    fit_to_data(opts, drawn(500, 4, side, 2))
    assert (opts.set["mask_stride"], opts.set["mask_threshold"]) == (stride, threshold)


def test_no_objects_and_other_systems(drawn):
    assert "epochs" in fit_to_data(options(), drawn(3, 0, 1))
    opts = TrainOptions(recipe="mask2former-small", model="mask2former_swin_tiny")
    fit_to_data(opts, drawn(100, 90, 12))
    assert opts.set["num_queries"] == 121 and "mask_stride" not in opts.set


def test_objects_without_a_query_are_counted_in_both_sets(toy_coco, capsys):
    """The toy set has up to 2 objects in an image, and each query finds one."""
    opts = TrainOptions(data=toy_coco, set={"num_queries": "1"})
    sets = open_splits(opts, ("train", "val"))
    more = {name: int((each.objects_per_image() - 1).clip(0).sum()) for name, each in sets.items()}
    capsys.readouterr()
    train.report_full_images(opts, sets)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and min(more.values()) > 0
    for line, (name, number) in zip(lines, more.items(), strict=True):
        assert line.startswith(f"{name}: ") and f"{number} object" in line
        assert "the 1 queries of the model" in line and line.endswith("--set num_queries=2")
    assert "are not learned" in lines[0] and "cannot be found in evaluation" in lines[1]


def test_larger_images_get_fewer_steps(drawn):
    opts = options()
    fit_to_data(opts, drawn(20, 2, 8, 1))
    assert opts.image_size == 448 and opts.epochs == 252  # 1257 steps of 4
