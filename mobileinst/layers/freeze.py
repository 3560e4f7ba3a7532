"""Freezing parts of a pretrained network."""

from collections.abc import Iterable

from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm whose statistics, scale and shift stay as loaded, in training as well.

    The batches of a small run estimate the statistics worse than pretraining did.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The factor and the summand of every channel, [C] each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - scale * self.running_mean


def freeze_norms(module: nn.Module, layers: Iterable[nn.Module] | None = None) -> None:
    """Replaces the BatchNorms in `module`, or only those in the given layers of it."""
    layers = [module] if layers is None else layers
    chosen = {each for layer in layers for each in layer.modules()}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d and child in chosen:
                parent.add_module(name, FrozenBatchNorm2d(child))


def freeze_depthwise(module: nn.Module) -> None:
    """Freezes the filters of depth-wise convolutions. Our choice: of EfficientNet-Lite0 they are a
    twentieth of the parameters, and their gradient is an eighth to a fifth of the forward and
    backward of Mask2Former on a CPU.
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1:
            conv.weight.requires_grad_(False)


def freeze_layers(backbone: nn.Module, stride: int) -> None:
    """Freezes all layers at `stride` or finer: no gradient is computed for them."""
    freeze_norms(backbone, backbone.layers_until(stride))
    for layer in backbone.layers_until(stride):
        layer.requires_grad_(False)
        for module in layer.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0
