"""A trained model made ready for use."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mobileinst.segmenter import Segmenter


@torch.inference_mode(False)
def fold_batchnorms(model: Segmenter) -> Segmenter:
    """Returns a copy in eval mode, without gradients and channels last, in which BatchNorms are
    part of the convolutions and linear layers before them. Outputs are the same within rounding.

    A BatchNorm belongs to the layer that its parent registers just before it, unless a forward of
    one image shows that it reads something else, as it may in a part of your own.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    children = ((parent, list(parent.named_children())) for parent in model.modules())
    pairs = [
        (layer, norm, parent, name)
        for parent, named in children
        for (_, layer), (name, norm) in pairwise(named)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and isinstance(norm, _BatchNorm)
    ]
    made, read = {}, {}  # outputs of the layers that are called, inputs of the norms

    def note_output(layer: nn.Module, _: tuple, output: Tensor) -> None:
        made[layer] = output

    def note_input(norm: nn.Module, inputs: tuple) -> None:
        read[norm] = inputs[0]

    hooks = [layer.register_forward_hook(note_output) for layer, *_ in pairs]
    hooks += [norm.register_forward_pre_hook(note_input) for _, norm, *_ in pairs]
    if pairs:
        model(torch.zeros(1, 3, 64, 64, device=pairs[0][0].weight.device))
    for hook in hooks:
        hook.remove()
    for layer, norm, parent, name in pairs:
        if layer not in made or made[layer] is read.get(norm):
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
            layer.weight, layer.bias = weight.requires_grad_(False), bias.requires_grad_(False)
            setattr(parent, name, nn.Identity())
    return model.to(memory_format=torch.channels_last)
