"""Inference form of a trained model, and its export form for images of one size."""

import copy
import functools
from collections import defaultdict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mobileinst.segmenter import Segmenter
from mobileinst.set_prediction.postprocess import (
    STEP,
    Postprocess,
    Size,
    grid_quality,
    grid_stability,
)

# Of the pad colour in bytes; image pixels as near to it become zero as well, half a step away.
TOLERANCE = 0.51 / 255
STEEP = 2.0**15  # differences to a limit are 1 from 3e-5 on; half precision holds it as well


@torch.inference_mode(False)
def fold_batchnorms(model: Segmenter) -> Segmenter:
    """Returns a copy in eval mode, without gradients and channels last, in which BatchNorms are
    part of the convolutions and linear layers before them. Outputs are the same within rounding.

    A BatchNorm is folded into the layer that its parent registers just before it, unless a forward
    pass shows that its input is another one, as it may be in custom parts. Nothing else may read
    the output of that layer.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    children = ((parent, list(parent.named_children())) for parent in model.modules())
    pairs = [
        (layer, norm, parent, name)
        for parent, named in children
        for (_, layer), (name, norm) in pairwise(named)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and isinstance(norm, _BatchNorm)
    ]
    notes = defaultdict(list)  # outputs of the layers and inputs of the norms, call by call
    alive = []  # keeps the ids of tensors unique

    def note(module: nn.Module, x: Tensor) -> None:
        alive.append(x)
        notes[module].append((id(x), x._version))  # an in-place ReLU makes another version

    def note_output(layer: nn.Module, _: tuple, output: Tensor) -> None:
        note(layer, output)

    def note_input(norm: nn.Module, inputs: tuple) -> None:
        note(norm, inputs[0])

    hooks = [layer.register_forward_hook(note_output) for layer, *_ in pairs]
    hooks += [norm.register_forward_pre_hook(note_input) for _, norm, *_ in pairs]
    if pairs:
        model(torch.zeros(1, 3, 64, 64, device=pairs[0][0].weight.device))
    for hook in hooks:
        hook.remove()
    for layer, norm, parent, name in pairs:
        if not notes[layer] or notes[layer] == notes[norm]:
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
            layer.weight, layer.bias = weight.requires_grad_(False), bias.requires_grad_(False)
            setattr(parent, name, nn.Identity())
    return model.to(memory_format=torch.channels_last)


def deploy(model: Segmenter, postprocess: Postprocess, size: Size) -> "Deployed":
    """A trained model with its post-processing up to final scores, for images of one size.

    The given model is not changed.

    Args:
        size: (H, W) of the input, multiples of the coarsest stride.
    Raises:
        ValueError: if the scores of the post-processing cannot be part of a graph.
    """
    if postprocess.quality not in (*QUALITIES, None):
        raise ValueError("the mask quality of the post-processing is a function of its own")
    model = fold_batchnorms(model).to(memory_format=torch.contiguous_format)
    for name in model.training_layers:
        setattr(model, name, nn.ModuleDict())
    return Deployed(model, postprocess, size).eval()


def graph_postprocess(postprocess: Postprocess) -> Postprocess:
    """The post-processing that a graph contains: the mask quality on the grid of the logits, and
    every query.

    Mask2Former as published computes its quality at the original size, which a graph does not know,
    and drops queries whose best class is "no object", which scores cannot express.
    """

    def every_query(outputs: dict) -> tuple[Tensor, Tensor]:
        scores, found = postprocess.rank(outputs)
        return scores, torch.ones_like(found)

    changed = copy.copy(postprocess)
    changed.rank, changed.quality = every_query, postprocess.quality or grid_quality
    return changed


def final_postprocess(max_detections: int, duplicate_iou: float) -> Postprocess:
    """The post-processing of `scores` and `mask_logits` that a deployed model gave."""

    def rank(outputs: dict) -> tuple[Tensor, Tensor]:
        return outputs["scores"], torch.ones_like(outputs["scores"][:, 0], dtype=torch.bool)

    def quality(mask_logits: Tensor, padded: Size, size: Size, cut: float) -> Tensor:
        return mask_logits.new_ones(len(mask_logits))  # it is part of the scores

    return Postprocess(rank, 0.5, max_detections, quality, duplicate_iou)


class Normalised(nn.Module):
    """Replaces the normalisation of a model whose images are normalised already."""

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        return images


class Deployed(nn.Module):
    """Image float32 [1,3,H,W], RGB in 0..1 -> scores [1,Q,K] and masks [1,Q,h,w].

    The image is at the top left; the rest has the mean colour of the model, which marks padding: it
    is zero after normalising and does not count for the mask quality. Nor do the last rows and
    columns of an image that have this colour everywhere.

    scores: final, of each query and class. masks: logits minus the threshold's, above 0 inside.

    Uses arithmetic of float32 only, without booleans: other operators split the partition of
    XNNPACK, and take as long as a third of the network each.
    """

    def __init__(self, model: Segmenter, postprocess: Postprocess, size: Size):
        super().__init__()
        self.mean, self.std = model.normalise.mean, model.normalise.std  # [3,1,1] each
        self.model = model
        model.normalise = Normalised()
        self.rank, self.cut, self.size = postprocess.rank, postprocess.cut, size
        self.quality_of = QUALITIES[postprocess.quality or grid_quality]
        self.cell = model.mask_stride // 2  # of the grid of the mask quality, in pixels

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = image - self.mean
        far = image.abs()
        distance = functools.reduce(torch.maximum, (far[:, i : i + 1] for i in range(3)))
        outputs = self.model(image * (above(distance, TOLERANCE) / self.std))
        masks = outputs["mask_logits"] - self.cut  # [1,Q,h,w]
        names = {"class_logits", "objectness"} & outputs.keys()
        scores, _ = self.rank({name: outputs[name].flatten(0, 1) for name in names})  # [Q,K]
        scores = scores * self.quality(outputs["mask_logits"], distance).flatten(0, 2)  # [Q,K]
        return scores.unflatten(0, (1, -1)), masks

    def quality(self, mask_logits: Tensor, distance: Tensor) -> Tensor:
        """That of the post-processing, with the size of the image found in its pixels:
        -> [1,Q,1,1].
        """
        seen = F.max_pool2d(distance, self.cell)  # [1,1,2h,2w]
        height, width = seen.shape[2:]
        # A cell counts if it or a later one holds a pixel of the image.
        rows = F.pad(F.max_pool2d(seen, (1, width)), (0, 0, 0, height - 1))
        rows = above(F.max_pool2d(rows, (height, 1), 1), TOLERANCE)  # [1,1,2h,1]
        columns = F.pad(F.max_pool2d(seen, (height, 1)), (0, width - 1))
        columns = above(F.max_pool2d(columns, (1, width), 1), TOLERANCE)  # [1,1,1,2w]
        logits = F.interpolate(mask_logits, scale_factor=2, mode="bilinear", align_corners=False)
        return self.quality_of(logits, rows * columns, self.cut)


def mean_probability(logits: Tensor, seen: Tensor, cut: float) -> Tensor:
    """`grid_quality` of logits [1,Q,h,w] where `seen` [1,1,h,w] is 1: -> [1,Q,1,1]."""
    inside = inside_seen(logits, seen, cut)
    sure = logits.sigmoid() * inside
    cell = 1 / seen[0, 0].numel()
    return sure.mean((2, 3), True) / inside.mean((2, 3), True).clamp(min=cell)


def stability(logits: Tensor, seen: Tensor, cut: float) -> Tensor:
    """`grid_stability` of logits [1,Q,h,w] where `seen` is 1: -> [1,Q,1,1]."""
    cell = 1 / seen[0, 0].numel()
    inside, smaller, larger = (
        inside_seen(logits, seen, cut + step).mean((2, 3), True) for step in (0, STEP, -STEP)
    )
    return above(inside / cell, 0.5) * (smaller + cell) / (larger + cell)


QUALITIES = {grid_quality: mean_probability, grid_stability: stability}  # those that a graph has


def inside_seen(logits: Tensor, seen: Tensor, cut: float) -> Tensor:
    """1 where logits are above the cut and `seen` is 1, else 0: [1,Q,h,w].

    Without scalars, around which ExecuTorch would transpose the maps for XNNPACK.
    """
    return ((logits - seen * cut) * (seen * STEEP)).clamp(0, 1)


def above(x: Tensor, limit: float) -> Tensor:
    """1 where x > limit, else 0."""
    return ((x - limit) * STEEP).clamp(0, 1)


class FromBytes(nn.Module):
    """`Deployed` for an image uint8 [1,H,W,3]."""

    def __init__(self, deployed: Deployed):
        super().__init__()
        self.deployed = deployed

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.deployed(image.permute(0, 3, 1, 2).float() / 255)
