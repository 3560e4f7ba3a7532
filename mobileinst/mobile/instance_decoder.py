"""The dual transformer instance decoder (MobileInst, Figure 3): queries read X_G, then X_L.

Two decoder layers, one FFN and three heads are the paper's, and so is X_L, X_mask max-pooled to
1/64. Norms, positions and self-attention are not stated there and are our choice.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from mobileinst.layers.attention import MLP, MultiHeadAttention
from mobileinst.layers.conv import apply_kernels, average_over, max_pool_ceil
from mobileinst.layers.position import coordinate_maps, sine_position

X_MASK_STRIDE = 8
PRIOR = 0.01  # class probability at the start, so that the many empty queries do not swamp the loss


class InstanceDecoder(nn.Module):
    """Learned queries -> class logits, objectness and kernels, one of each per query.

    global_channels, mask_channels: channels of X6 and X_mask. kv_stride: stride of X_L, 64 as in
    the paper, or 32 or 16 for many small objects; X_G stays X6. ffn_ratio: hidden width of the FFN
    over `width`. self_attention: queries look at each other after each look at the image.
    placed: the queries lie on a grid over the canvas, our choice: see `Places`.
    guided: the local layer looks where a query's first mask lies. Our choice for small sets: plain
    attention takes tens of thousands of steps to find the object whose class it predicts.
    mask_stride: of the pixel features.
    """

    def __init__(
        self,
        global_channels: int,
        mask_channels: int,
        num_classes: int,
        kernel_dim: int = 128,
        num_queries: int = 100,
        width: int = 128,
        num_heads: int = 8,
        ffn_ratio: int = 4,
        kv_stride: int = 64,
        self_attention: bool = True,
        guided: bool = False,
        mask_stride: int = 8,
        placed: bool = False,
    ):
        super().__init__()
        if kv_stride not in (16, 32, 64):
            raise ValueError(f"kv_stride is 16, 32 or 64, not {kv_stride}")
        self.global_channels = global_channels
        self.mask_channels = mask_channels
        self.kernel_dim = kernel_dim
        self.mask_stride = mask_stride
        self.kv_stride = kv_stride
        self.guided = guided
        self.query_features = nn.Embedding(num_queries, width)
        self.query_positions = nn.Embedding(num_queries, width)
        self.places = Places(mask_channels, width, num_queries) if placed else None
        self.global_memory = Memory(global_channels, width)
        self.local_memory = Memory(mask_channels, width)
        self.global_layer = DecoderLayer(width, num_heads, self_attention)
        self.local_layer = DecoderLayer(width, num_heads, self_attention)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = MLP(width, ffn_ratio * width, width)
        self.heads = InstanceHeads(width, num_classes, kernel_dim)

    def forward(
        self,
        global_map: Tensor,
        mask_features: Tensor,
        pixel_features: Tensor,
        global_queries: Tensor | None = None,
    ) -> dict[str, Any]:
        """X6 [B,C6,·,·] and X_mask [B,D,h,w] -> dict of the heads' outputs over all queries.

        class_logits [B,Q,K], objectness [B,Q,1], kernels [B,Q,D], or [B,Q,D+5] of placed queries,
        queries [B,Q,C] (normalised), global_queries [B,Q,C] (what the global layer gave), and aux:
        while training, a list with the heads' outputs for global_queries, else []. Given
        `global_queries`, those of another frame, the global layer is skipped: the paper's temporal
        query passing.
        """
        content, positions = self.query_features.weight, self.query_positions.weight  # [Q,C] twice
        if self.places is not None:
            here, place_positions = self.places(mask_features)
            content, positions = content + here, positions + place_positions
        if global_queries is None:
            content = content.expand(len(global_map), -1, -1)  # [B,Q,C]
            global_queries = self.global_layer(content, positions, *self.global_memory(global_map))
        local_map = max_pool_ceil(mask_features, self.kv_stride // X_MASK_STRIDE)  # [B,D,H/64,W/64]
        first = self.predict(global_queries) if self.training or self.guided else None
        guide = self.guide(first["kernels"], pixel_features) if self.guided else None
        queries = self.local_layer(global_queries, positions, *self.local_memory(local_map), guide)
        queries = queries + self.ffn(self.ffn_norm(queries))
        outputs = self.predict(queries) | {"global_queries": global_queries}
        return outputs | {"aux": [first] if self.training else []}

    def predict(self, queries: Tensor) -> dict[str, Tensor]:
        """The heads' outputs; the kernels of placed queries end with the blob's coefficients."""
        outputs = self.heads(queries)
        if self.places is not None:
            blobs = self.places.blobs(outputs["queries"])
            outputs["kernels"] = torch.cat((outputs["kernels"], blobs), -1)  # [B,Q,D+5]
        return outputs

    def guide(self, kernels: Tensor, pixel_features: Tensor) -> Tensor:
        """Log probability of the first mask on the grid of X_L: [B,Q,D], [B,D,h,w] -> [B,1,Q,M]."""
        logits = apply_kernels(kernels, pixel_features).detach()  # [B,Q,h,w]
        probs = max_pool_ceil(logits, self.kv_stride // self.mask_stride).sigmoid().flatten(2)
        return probs.clamp(min=1e-3).log().unflatten(1, (1, -1))


class Places(nn.Module):
    """Gives each query a place: a cell of a grid over the canvas. Our choice.

    A learned query asks for a kind of object, so neighbours of one class are found together: on
    VOC, 24 % of the objects beside another of their class were found after 4 epochs, with places
    46 %. A query starts from what the mask features hold in its cell, and its first mask is a blob
    around the cell's centre (a quadratic in x and y, so still a kernel times pixel features, which
    `blob_maps` extends), so that the matching and the guide tell neighbours apart from the start.
    The grid is as square as `num_queries` can be divided; a square number is best.
    """

    def __init__(self, channels: int, width: int, num_queries: int):
        super().__init__()
        rows = next(n for n in range(math.isqrt(num_queries), 0, -1) if num_queries % n == 0)
        self.grid = rows, num_queries // rows
        self.memory = Memory(channels, width)
        self.blob = nn.Linear(width, 5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.blob.weight)
        # Start with logit 0.5 - 2 r², 0 at a quarter of the canvas from the centre.
        with torch.no_grad():
            self.blob.bias.copy_(torch.tensor([0.5, 0, 0, 2, 2]))

    def forward(self, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        """[B,D,h,w] -> contents [B,Q,C] and positions [Q,C] of the cells."""
        return self.memory(average_over(mask_features, self.grid))

    def blobs(self, queries: Tensor) -> Tensor:
        """Coefficients of 1, x, y, x² and y² in the mask logits: [B,Q,C] -> [B,Q,5].

        The layer gives c + bx dx + by dy - ex dx² - ey dy², with dx, dy from the cell's centre.
        """
        values = self.blob(queries)  # [B,Q,5]
        c, bx, by, ex, ey = (values[..., i : i + 1] for i in range(5))  # [B,Q,1] each
        x, y = coordinate_maps(*self.grid, queries.device)[0].flatten(1)[..., None]  # [Q,1] each
        constant = c - bx * x - by * y - ex * x**2 - ey * y**2
        return torch.cat((constant, bx + 2 * ex * x, by + 2 * ey * y, -ex, -ey), -1)


def blob_maps(height: int, width: int, device: Device = "cpu") -> Tensor:
    """1, x, y, x² and y² of every cell centre, with x and y over -1..1: [1,5,height,width]."""
    places = coordinate_maps(height, width, device)
    return torch.cat((torch.ones_like(places[:, :1]), places, places.square()), 1)


class DecoderLayer(nn.Module):
    """Cross-attention to a memory, then self-attention, each on normalised queries with a residual.

    Self-attention comes second, our choice: before the first look at the image it would compute
    the same numbers for every image. Positions are added to queries and keys, never to values.
    """

    def __init__(self, width: int, num_heads: int, self_attention: bool):
        super().__init__()
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, num_heads)
        self.self_norm = nn.LayerNorm(width) if self_attention else None
        self.self_attention = MultiHeadAttention(width, num_heads) if self_attention else None

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        guide: Tensor | None = None,
    ) -> Tensor:
        """[B,Q,C], [Q,C], [B,M,C], [M,C], guide [B,1,Q,M] -> [B,Q,C]."""
        look = self.cross_norm(queries) + query_positions
        queries = queries + self.cross_attention(look, memory + memory_positions, memory, guide)
        if self.self_attention is not None:
            content = self.self_norm(queries)
            look = content + query_positions
            queries = queries + self.self_attention(look, look, content)
        return queries


class Memory(nn.Module):
    """A map [B,C,h,w] as keys and values: tokens [B,h·w,width] and their positions [h·w,width].

    Tokens are normalised, our choice: X6 is a sum of many branches without a norm of its own, and
    next to its size the sine positions would vanish.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.proj(x.flatten(2).transpose(1, 2)))  # [B,h·w,C]
        positions = sine_position(*x.shape[-2:], tokens.shape[-1], device=x.device)
        return tokens, positions.to(tokens.dtype)


class InstanceHeads(nn.Module):
    """Final norm and the three heads, shared by the last and the auxiliary output.

    Class and objectness are linear. The kernel head has three layers, our choice after
    Mask2Former: a kernel is in the space of the pixel features and not of the queries, and the
    step between them costs next to nothing over a hundred queries.
    """

    def __init__(self, width: int, num_classes: int, kernel_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, num_classes)
        self.objectness = nn.Linear(width, 1)
        self.kernel = MLP(width, width, width, kernel_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.normal_(self.objectness.weight, std=0.01)
        nn.init.zeros_(self.objectness.bias)
        # As in SparseInst. It also starts the mask logits near ±1 rather than near ±10, where the
        # sigmoid would pass little gradient.
        nn.init.normal_(self.kernel[-1].weight, std=0.01)

    def forward(self, queries: Tensor) -> dict[str, Tensor]:
        queries = self.norm(queries)  # [B,Q,C]
        return {
            "class_logits": self.classes(queries),  # [B,Q,K]
            "objectness": self.objectness(queries),  # [B,Q,1]
            "kernels": self.kernel(queries),  # [B,Q,D]
            "queries": queries,
        }
