"""Swin against torchvision where the rules agree, elsewhere against plain loops over windows."""

import math
import re
import zlib

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from mobileinst import zoo
from mobileinst.backbones.swin import (
    SwinTransformer,
    shift_mask,
    swin_base,
    swin_small,
    swin_tiny,
    to_windows,
)
from mobileinst.layers.init import draw_parameters

SMALL = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


def randomise(module: nn.Module) -> nn.Module:
    """`module` in eval mode, every parameter drawn from its name and large enough to matter."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1 and not name.endswith("bias_table"):
                noise *= math.sqrt(1 / math.prod(value.shape[1:]))
            elif value.ndim == 1:
                noise = 0.2 * noise + float("norm" in name and name.endswith("weight"))
            value.copy_(noise)
    return module.eval()


@pytest.fixture
def undrawn(monkeypatch):
    """Large models are built without drawing what is replaced at once."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)


def draw_images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


# ---- torchvision


def official_name(name: str) -> str:
    """`features.3.1.mlp.0.weight` -> `layers.1.blocks.1.mlp.fc1.weight`, and so on."""
    number, rest = re.fullmatch(r"features\.(\d+)\.(.+)", name).groups()
    stage, kind = divmod(int(number) - 1, 2)
    if number == "0":
        return "patch_embed." + rest.replace("0.", "proj.").replace("2.", "norm.")
    if kind:
        return f"layers.{stage}.downsample.{rest}"
    rest = rest.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
    return f"layers.{stage}.blocks.{rest}"


def torchvision_maps(features: nn.Sequential, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the four stages, normalised without scale and shift: [B,C,h,w]."""
    maps, x = [], images
    for number, part in enumerate(features):
        x = part(x)
        if number % 2:
            maps.append(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize(
    "theirs, ours, size",
    [
        ("swin_t", swin_tiny, (260, 300)),  # odd maps: 65 x 75, 33 x 38, 17 x 19, 9 x 10
        ("swin_s", swin_small, (228, 256)),
        ("swin_b", lambda: swin_base(window_size=7), (256, 228)),
    ],
)
@torch.no_grad()
def test_agrees_with_torchvision_where_no_map_fits_into_one_window(undrawn, theirs, ours, size):
    features = randomise(torchvision.models.get_model(theirs, weights=None).features)
    parameters = {f"features.{name}": value for name, value in features.named_parameters()}
    model = ours().eval()
    missing, unexpected = model.load_state_dict(
        {official_name(name): value for name, value in parameters.items()}, strict=False
    )
    assert not unexpected
    assert missing == [f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    images = draw_images(1, 3, *size)
    maps = model(images)
    assert max(map(relative_error, maps, torchvision_maps(features, images))) < 1e-5


# ---- plain loops


class Plain:
    """The published rules in float64: loops over images, windows and the parts of cut windows.

    Nothing is rolled or masked here. Shifted windows are cut at the border of the map, and the
    parts attend each to itself.
    """

    def __init__(self, model: SwinTransformer, depths: tuple, heads: tuple, window: int):
        self.state = {name: value.double() for name, value in model.state_dict().items()}
        self.depths, self.heads, self.window = depths, heads, window

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def __call__(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Image [3,H,W] -> four maps [C,h,w]."""
        image, weight = padded(image, 4), self.state["patch_embed.proj.weight"]
        patches = image.unfold(1, 4, 4).unfold(2, 4, 4)  # [3,h,w,4,4]
        x = torch.einsum("ihwyx,oiyx->hwo", patches, weight)
        x = self.norm("patch_embed.norm", x + self.state["patch_embed.proj.bias"])
        maps = []
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                x = self.block(f"layers.{i}.blocks.{j}", x, i, self.window // 2 * (j % 2))
            maps.append(self.norm(f"norm{i}", x).permute(2, 0, 1))
            if i < len(self.depths) - 1:
                x = self.merge(f"layers.{i}.downsample", x)
        return maps

    def block(self, name: str, x: torch.Tensor, stage: int, shift: int) -> torch.Tensor:
        x = x + self.attention(f"{name}.attn", self.norm(f"{name}.norm1", x), stage, shift)
        y = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))
        return x + self.linear(f"{name}.mlp.fc2", y * (1 + torch.erf(y / math.sqrt(2))) / 2)

    def attention(self, name: str, x: torch.Tensor, stage: int, shift: int) -> torch.Tensor:
        height, width, channels = x.shape
        x = padded(x.permute(2, 0, 1), self.window).permute(1, 2, 0)
        out = torch.empty_like(x)
        for rows in window_parts(x.shape[0], self.window, shift):
            for columns in window_parts(x.shape[1], self.window, shift):
                cells = [(y, x) for y in rows for x in columns]
                y = self.attend(name, torch.stack([x[cell] for cell in cells]), cells, stage)
                out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = y.view(
                    len(rows), len(columns), channels
                )
        return out[:height, :width]

    def attend(self, name: str, x: torch.Tensor, cells: list, stage: int) -> torch.Tensor:
        """Attention among `cells` (y, x) with the values [N,C]."""
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, 1)
        place, span = torch.tensor(cells), 2 * self.window - 1
        dy, dx = (place[:, None] - place + self.window - 1).unbind(2)
        table = self.state[f"{name}.relative_position_bias_table"][dy * span + dx]  # [N,N,heads]
        mixed = []
        for head in range(self.heads[stage]):
            own = slice(head * 32, head * 32 + 32)
            logits = q[:, own] @ k[:, own].T / math.sqrt(32) + table[..., head]
            weights = logits.exp() / logits.exp().sum(1, keepdim=True)
            mixed.append(weights @ v[:, own])
        return self.linear(f"{name}.proj", torch.cat(mixed, 1))

    def merge(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = padded(x.permute(2, 0, 1), 2).permute(1, 2, 0)
        four = torch.cat((x[::2, ::2], x[1::2, ::2], x[::2, 1::2], x[1::2, 1::2]), 2)
        return self.linear(f"{name}.reduction", self.norm(f"{name}.norm", four))


def padded(x: torch.Tensor, size: int) -> torch.Tensor:
    """[C,h,w] in a larger array of zeros whose sides are multiples of `size`."""
    height, width = (math.ceil(side / size) * size for side in x.shape[1:])
    out = x.new_zeros(len(x), height, width)
    out[:, : x.shape[1], : x.shape[2]] = x
    return out


def window_parts(length: int, window: int, shift: int) -> list[range]:
    """An axis cut at shift, shift + window, ..: the first and last part make one cut window."""
    cuts = sorted({0, length, *range(shift, length, window)})
    return [range(*pair) for pair in zip(cuts, cuts[1:])]


@pytest.mark.parametrize(
    "keywords, size",
    [
        (
            dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7),
            (65, 97),
        ),
        ({**SMALL, "window_size": 7}, (20, 31)),  # no map fills a window
        ({**SMALL, "window_size": 7}, (224, 224)),  # the last map is one window
        ({**SMALL, "window_size": 12}, (1, 201)),
        ({**SMALL, "window_size": 12}, (100, 30)),
    ],
)
def test_agrees_with_plain_loops_at_any_size(undrawn, keywords, size):
    model = randomise(SwinTransformer(**keywords))
    plain = Plain(model, *(keywords[key] for key in ("depths", "num_heads", "window_size")))
    images = draw_images(2, 3, *size)
    wanted = [torch.stack(maps) for maps in zip(*(plain(each.double()) for each in images))]
    with torch.no_grad():
        assert max(map(relative_error, model(images), wanted)) < 1e-5
    assert max(map(relative_error, model(images), wanted)) < 1e-5  # the path of training


@pytest.mark.parametrize("height, width", [(10, 13), (8, 4), (3, 2)])
def test_shift_mask_parts_what_only_the_rolling_brought_together(height, width):
    mask = shift_mask(height, width, size=4, shift=2, device=torch.device("cpu"))
    rows, columns = (torch.arange(math.ceil(side / 4) * 4) for side in (height, width))
    now = torch.cartesian_prod(rows, columns).view(1, len(rows), len(columns), 2)
    before = now.roll((-2, -2), (1, 2))  # where the cells of the rolled map lay
    ways = []
    for place in (now, before):
        place = to_windows(place, 4)[0]  # [n,16,2]
        ways.append(place[:, :, None] - place[:, None])
    as_before = (ways[0] == ways[1]).all(-1)
    assert not as_before[-1].all()
    assert torch.equal(mask, torch.where(as_before, 0.0, -100.0))


# ---- sizes, names, values


@pytest.mark.parametrize(
    "name, millions, window",
    [("tiny", 27.52, 7), ("small", 48.84, 7), ("base", 86.88, 12), ("large", 195.20, 12)],
)
def test_published_sizes(name, millions, window):
    with torch.device("meta"):  # counting needs no values
        model = zoo.build_backbone(f"swin_{name}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    for stage, channels in zip(model.layers, model.channels):
        table = stage.blocks[1].attn.relative_position_bias_table
        assert table.shape == ((2 * window - 1) ** 2, channels // 32)


def test_drop_path_rates_rise_over_all_blocks():
    model = SwinTransformer(**SMALL, drop_path=0.35)
    rates = [block.drop_path.p for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(8)])


def test_first_values():
    model = SwinTransformer(**SMALL)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(math.nan)
    draw_parameters(model, 0)
    for name, value in model.named_parameters():
        if "norm" in name:
            assert value.eq(float(name.endswith("weight"))).all(), name
        elif name.startswith("patch_embed"):
            assert value.abs().max() <= 1 / math.sqrt(48)  # torch's own start of a convolution
        elif name.endswith("bias"):
            assert value.eq(0).all(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 32 is not a multiple of 3 heads"):
        SwinTransformer(embed_dim=32, num_heads=(3, 2, 4, 8))


def test_layers_until_a_stride_are_those_that_work_there():
    backbone = swin_tiny()
    names = {module: name for name, module in backbone.named_modules()}
    found = [names[layer] for layer in backbone.layers_until(8)]
    assert found[:4] == ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "norm0"]
    assert found[4:] == ["layers.0.downsample", "layers.1.blocks.0", "layers.1.blocks.1", "norm1"]
    assert backbone.layers_until(2) == []
