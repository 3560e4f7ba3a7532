"""Freezing parts of a pretrained network."""

from torch import nn
from torchvision.ops import StochasticDepth


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm whose statistics, scale and shift stay what was loaded, in training as well.

    The batches of a small run estimate the statistics worse than pretraining did. Entries of
    the state dict are those of `nn.BatchNorm2d`.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


def freeze_norms(module: nn.Module) -> None:
    """Puts a `FrozenBatchNorm2d` in the place of every BatchNorm below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                parent.add_module(name, FrozenBatchNorm2d(child))


def freeze_layers(backbone: nn.Module, stride: int) -> None:
    """Freezes all layers that work at `stride` or a finer one; no gradient is computed for them,
    which for a convolutional backbone is most of the work.
    """
    for layer in backbone.layers_until(stride):
        freeze_norms(layer)
        layer.requires_grad_(False)
        for module in layer.modules():
            if isinstance(module, StochasticDepth):  # nothing here learns
                module.p = 0.0
