"""The same numbers as the package transformers, where it is installed."""

import copy

import pytest
import torch

from mobileinst import weights, zoo
from tests.mobileinst.test_published import CONFIG, SETTINGS, SWIN


@torch.no_grad()
def randomise(model) -> None:
    """Values with which every part matters, masks have both signs, and queries differ.

    Nothing is left of the start values, which are others in other versions, but the ones of norms.
    """
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
        elif "queries_" in name or "level_embed" in name:
            torch.nn.init.normal_(parameter)
        elif "sampling_offsets" in name or "attention_weights" in name or "bias_table" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        else:
            torch.nn.init.xavier_uniform_(parameter)
    model.class_predictor.weight *= 4


@pytest.fixture(scope="module")
def theirs():
    """The same small model in transformers."""
    transformers = pytest.importorskip("transformers")
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    sizes = {name: value for name, value in SETTINGS.items() if type(value) is int}
    swin = transformers.SwinConfig(**SWIN, drop_path_rate=0.0, out_features=stages)
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=swin, num_labels=3, **sizes)
    )
    randomise(model)
    return model


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub")
    theirs.save_pretrained(path)
    return zoo.from_huggingface(path)


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """Both models and all new tensors in this type."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("height, width", [(64, 96), (101, 67), (161, 223)])
@torch.no_grad()
def test_the_logits_of_transformers(theirs, ours, dtype, height, width):
    theirs.to(dtype).eval()
    ours.to(dtype).eval()
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    want = theirs(ours.normalise(images))
    got = ours(images)
    inside = (want.masks_queries_logits > 0).float().mean(1)  # share of the queries, [B,h,w]
    # What hides from attention is not all or nothing, and not the same for all queries.
    assert 0.05 < inside.mean() < 0.95 and ((inside > 0) & (inside < 1)).float().mean() > 0.02
    bound = 1e-5 if dtype is torch.float64 else 2e-4
    assert (got["class_logits"] - want.class_queries_logits).abs().max() < bound
    assert (got["mask_logits"] - want.masks_queries_logits).abs().max() < bound


def test_the_names_that_transformers_has_in_memory(theirs, ours, tmp_path):
    """Newer versions write the older names, unless it is torch that writes."""
    torch.save(theirs.state_dict(), tmp_path / "state.pth")
    model = zoo.build_from_config(CONFIG)[0]
    report = weights.load(model, tmp_path / "state.pth")
    state = ours.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert report.whole and not report.unexpected


def seed(*_) -> None:
    """To be called right before the loss: some versions draw numbers in the decoder as well."""
    torch.manual_seed(5)


class OfficialOrder:
    """Points from torch's own stream, drawn in the order of the published code: layer by layer, and
    in each first for matching. Our criterion matches all layers first: what it asks for in a first
    call is drawn in that order before a second one.
    """

    def __init__(self):
        self.shapes, self.points = {}, {}

    def draw(self, layer, image, purpose, shape):
        self.shapes[layer, image, purpose] = shape
        return self.points.get((layer, image, purpose), torch.rand(shape))

    def draw_all(self):
        layers = list(dict.fromkeys(layer for layer, *_ in self.shapes))
        keys = sorted(self.shapes, key=lambda key: layers.index(key[0]))  # stable
        self.points = {key: torch.rand(self.shapes[key]) for key in keys}


@torch.no_grad()
def keep_off_borders(model) -> None:
    """All sampling places at least a 32nd of a cell from where the slopes of a map jump.

    A place that rounding moves across has another gradient, by a hundredth of the largest or so.
    Where grids are exact halves of each other, centres of cells are at multiples of 1/8.
    """
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name:
            parameter *= 0.003
        elif "sampling_offsets.bias" in name:
            parameter.copy_((8 * parameter).floor() / 8 + 1 / 16)


@pytest.mark.parametrize(
    "dtype, height, width",
    [(torch.float64, 101, 127), (torch.float64, 96, 128), (torch.float32, 96, 128)],
    indirect=["dtype"],
    ids=str,
)
def test_the_loss_and_the_gradients_of_transformers(theirs, dtype, height, width, tmp_path):
    theirs = copy.deepcopy(theirs).float()
    if dtype is torch.float32:
        keep_off_borders(theirs)
    theirs.save_pretrained(tmp_path / "weights")
    ours = zoo.from_huggingface(tmp_path / "weights").to(dtype).train()
    theirs.to(dtype).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, height, width, generator=generator)
    targets = []
    for number, count in enumerate((2, 1, 3)):
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask in masks:
            y, x = torch.randint(0, 50, (2,), generator=generator).tolist()
            mask[y : y + 40, x : x + 50] = True
        ignore = torch.zeros(height, width, dtype=torch.bool)
        labels = torch.randint(0, 3, (count,), generator=generator)
        targets.append(
            {"masks": masks, "labels": labels, "ignore": ignore}
            | {"image_id": number, "size": (height, width)}
        )
    theirs.criterion.register_forward_pre_hook(seed)
    want = theirs(
        ours.normalise(images),
        mask_labels=[target["masks"].to(dtype) for target in targets],
        class_labels=[target["labels"] for target in targets],
    ).loss
    criterion = zoo.build_from_config(CONFIG)[1]
    points, outputs = OfficialOrder(), ours(images)
    criterion(outputs, targets, points=points)
    seed()
    points.draw_all()
    got = sum(criterion(outputs, targets, points=points).values())
    assert got.item() == pytest.approx(want.item(), rel=1e-4 if dtype is torch.float32 else 1e-7)
    want.backward()
    got.backward()
    with torch.no_grad():  # their gradients in our names: written and read like weights
        for parameter in theirs.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    theirs.save_pretrained(tmp_path / "gradients")
    wanted = weights.open_weights(tmp_path / "gradients" / "model.safetensors").tensors
    bound = 1e-5 if dtype is torch.float64 else 1e-3
    for name, parameter in ours.named_parameters():
        largest = wanted[name].abs().max()
        assert largest > 0, name
        assert (parameter.grad - wanted[name]).abs().max() < bound * largest, name
