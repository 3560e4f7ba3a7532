"""The semantic-enhanced mask decoder (MobileInst, Figure 3): X3, X4, X5 and X6 -> one map at 1/8.

The passes, the six 3×3 convolutions and the two enhancers are the paper's. It does not state how
maps reach a common width, what follows a convolution, or how maps are resized: 1×1 convolution,
BatchNorm + ReLU, bilinear up and maximum down are our choice.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.conv import ConvBN, conv_bn_relu, max_pool_ceil, resize_like
from mobileinst.layers.init import init_conv
from mobileinst.layers.position import coordinate_maps


class MaskDecoder(nn.Module):
    """Local maps /8, /16, /32 and the global map /64 -> mask features and pixel features at /8.

    in_channels: channels of X3, X4, X5 and X6; those of X2 before them ask for pixel features at /4
    (`FinePixels`). width: the paper's D. kernel_dim: channels of the pixel features, else `width`.
    coordinates: the last convolution of level 3 also reads the x and y of every cell, our choice
    after SOLO and SparseInst: without positions, a product with local features could not separate
    two objects that look alike. depthwise: the six convolutions are depth-wise and then 1×1, our
    choice for phones.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        width: int = 128,
        kernel_dim: int | None = None,
        coordinates: bool = True,
        depthwise: bool = False,
    ):
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.width = width
        self.kernel_dim = kernel_dim or width
        self.coordinates = coordinates
        *fine_channels, x3, x4, x5, x6 = in_channels
        self.local_inputs = nn.ModuleList(conv_bn_relu(c, width) for c in (x3, x4, x5))
        self.global_input = conv_bn_relu(x6, width)
        places = (coordinates, False, False)
        self.top_down = nn.ModuleList(spatial_conv(width, depthwise) for _ in range(3))
        self.bottom_up = nn.ModuleList(spatial_conv(width, depthwise, each) for each in places)
        # Our choice: X_mask is a sum of ReLU outputs. A linear step frees the sign, its bias gives
        # every mask an offset, and kernel_dim < width makes the product with kernels cheap.
        self.pixel_projection = nn.Conv2d(width, self.kernel_dim, 1)
        self.fine_pixels = FinePixels(*fine_channels, self.kernel_dim) if fine_channels else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.pixel_projection)

    def forward(self, local_maps: list[Tensor], global_map: Tensor) -> tuple[Tensor, Tensor]:
        """Mask features X_mask [B,width,h,w] at 1/8, pixel features [B,kernel_dim,·,·].

        local_maps: X3, X4 and X5, or X2 to X5.
        """
        *x2, x3, x4, x5 = local_maps
        x3, x4, x5 = (enter(x) for enter, x in zip(self.local_inputs, (x3, x4, x5)))
        semantic = self.global_input(global_map)  # [B,D,H/64,W/64]

        p5 = enhance(x5, semantic)  # first pass, top down
        p4 = x4 + resize_like(p5, x4)
        p3 = x3 + resize_like(p4, x3)
        p3, p4, p5 = (conv(p) for conv, p in zip(self.top_down, (p3, p4, p5), strict=True))

        # Second pass, bottom up. The maximum keeps the response of a thin object, as for X_L.
        q4 = p4 + max_pool_ceil(p3, 2)
        q5 = p5 + max_pool_ceil(q4, 2)
        q3, q4, q5 = (conv(q) for conv, q in zip(self.bottom_up, (p3, q4, q5), strict=True))

        r5 = enhance(q5, semantic)  # third pass, top down
        r4 = q4 + resize_like(r5, q4)
        mask_features = q3 + resize_like(r4, q3)  # [B,D,H/8,W/8]
        pixel_features = self.pixel_projection(mask_features)
        if self.fine_pixels is not None:
            pixel_features = self.fine_pixels(pixel_features, *x2)
        return mask_features, pixel_features


def spatial_conv(width: int, depthwise: bool, coordinates: bool = False) -> nn.Sequential:
    """One of the six 3×3 convolutions with its BatchNorm and ReLU."""
    conv = CoordinateConv if coordinates else ConvBN
    first = [ConvBN(width, width, 3, groups=width), nn.ReLU(inplace=True)] if depthwise else []
    last = conv(width, width, 1 if depthwise else 3)
    return nn.Sequential(*first, last, nn.ReLU(inplace=True))


class CoordinateConv(ConvBN):
    """A ConvBN of a map to which the x and y of every cell are appended.

    Their part is a convolution of its own: it is a constant in an exported file, and the fast
    kernels take channels in blocks of 8 or 16, so two more cost ONNX Runtime 40 %.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3):
        super().__init__(in_channels + 2, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        weight, weight_of_places = self.c.weight.split((x.shape[1], 2), 1)
        places = coordinate_maps(*x.shape[-2:], device=x.device).to(x.dtype)
        places = F.conv2d(places, weight_of_places, padding=self.c.padding)  # [1,C,h,w]
        return self.bn(self.c._conv_forward(x, weight, self.c.bias) + places)


class FinePixels(nn.Module):
    """Pixel features at 1/8 and X2 -> pixel features at 1/4, for small objects. Our choice: a
    projection of X2 is added, then a depth-wise separable convolution as a residual, which costs
    a tenth of a 3×3 convolution. The masks of 100 images of nuclei, passed through the mask grid
    at size 320 and back, score AP .41 at 1/8 and .83 at 1/4.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.lateral = ConvBN(in_channels, channels)
        self.spatial = ConvBN(channels, channels, 3, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.mix)

    def forward(self, x: Tensor, x2: Tensor) -> Tensor:
        x = resize_like(x, x2) + self.lateral(x2)  # [B,D,H/4,W/4]
        return x + self.mix(self.spatial(x).relu())


def enhance(local: Tensor, semantic: Tensor) -> Tensor:
    """The semantic enhancer X_l ⊙ X_G + X_G, with X_G resized bilinearly to the grid of X_l."""
    semantic = resize_like(semantic, local)
    return local * semantic + semantic
