"""Entry: torchvision's Mask R-CNN on the same backbone weights, lists and CPU minutes as ours.

As in torchvision's reference recipe (references/detection): half of the images are flipped, images
without objects are left out, a batch is of landscapes or of portraits; SGD with momentum 0.9,
weight decay 1e-4, learning rate 0.02 for 16 images and proportional for others; linear warm-up in
the first 1/26 of the training, drops to a tenth after 16/26 and 22/26; the BatchNorms of the
backbone are frozen, and its layers at stride 4 and finer. The FPN has BatchNorms, as in
torchvision's v2 models: without them the loss became infinite, as these maps end without a norm.

Other than there, in its favour: the schedule follows the CPU time used, the short side is chosen on
the validation split, trials and evaluation cost no minutes, scores down to 0.001 count, and the
heads train on 128 boxes per image instead of 512, for 1.7 times the steps. It has no ignore
regions: crowds and void are not given as objects, and that is all.
"""

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import masks_to_boxes
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from data import rle
from data.batch import Annotation
from data.dataset import CocoDataset
from data.errors import InputError
from data.loaders import Batches, Key, Samples, permutation
from engine import files, options, skipped, values
from engine.coco_ap import FIELDS, score
from engine.datasets import open_splits
from engine.files import FailedRun
from engine.log import info, progress
from engine.report.tables import aligned, number, pipes
from engine.run import cpu_seconds
from engine.values import integer, positive, positive_real
from mobileinst import weights, zoo
from mobileinst.layers.freeze import freeze_layers, freeze_norms
from mobileinst.segmenter import channels_at

STRIDES = (4, 8, 16, 32)
# torchvision's are 8 · stride for images of 800 pixels; at 256 to 448 objects are half as large.
ANCHORS = tuple((4 * stride,) for stride in (*STRIDES, 64))
RESULTS = "maskrcnn.json"
TRIAL = 0.1  # minutes of each trial, relative to those of the training

Item = tuple[Tensor, dict]  # an image [3,H,W], 0..1, of the original size, and its target


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Train torchvision's Mask R-CNN with our backbone; score it as ours.")
    add = parser.add_argument
    about = f"one of {', '.join(zoo.BACKBONES)}"
    default = "efficientnet_lite0"
    add("--backbone", choices=zoo.BACKBONES, default=default, metavar="NAME", help=about)
    add("--pretrained", type=Path, required=True, help="weights of the backbone")
    add("--cpu-minutes", type=positive_real, default=75.0, help="CPU minutes of the training")
    add(
        "--short-sides",
        type=positive,
        nargs="+",
        default=[256, 320, 448],
        help="short sides of the images that are tried",
    )
    add("--batch-size", type=positive, default=4, help="images of a training step")
    add("--rois", type=positive, default=128, help="boxes of each image that train the heads")
    add("--seed", type=integer, default=0, help="fixes every random number")
    options.add_out(parser, "folder; runs/maskrcnn-NNN if not given")
    options.add_data(parser)
    options.add_option(parser, "threads", default=values.default_threads())
    options.add_option(parser, "workers", default=values.default_workers())
    return parser.parse_args(argv)


class Pyramid(nn.Module):
    """Normalised images -> maps of an FPN on our backbone at strides 4 to 32, and one at 64."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        freeze_norms(backbone)
        freeze_layers(backbone, STRIDES[0])
        self.backbone, self.out_channels = backbone, 256
        self.fpn = FeaturePyramidNetwork(
            list(channels_at(backbone, STRIDES)),
            self.out_channels,
            LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = dict(zip(self.backbone.strides, self.backbone(images)))
        return self.fpn({str(level): maps[stride] for level, stride in enumerate(STRIDES)})


def build(
    backbone: nn.Module, num_classes: int, short_side: int, rois: int, max_dets: int = 100
) -> MaskRCNN:
    return MaskRCNN(
        Pyramid(backbone),
        num_classes + 1,  # 0 is background
        min_size=short_side,
        max_size=math.ceil(1333 / 800 * short_side),  # the ratio of torchvision's defaults
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
        rpn_anchor_generator=AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * len(ANCHORS)),
        box_batch_size_per_image=rois,
        box_score_thresh=0.001,
        box_detections_per_img=max_dets,
    )


def view(
    image: Image.Image, annotation: Annotation, canvas: None, flips: torch.Generator | None
) -> Item:
    """The preset of the loaders: flips half of the images, none without a generator."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # [3,H,W]
    masks = torch.from_numpy(rle.decode(annotation.rles, annotation.orig_size))  # [N,H,W]
    if flips is not None and torch.rand(1, generator=flips).item() < 0.5:
        pixels, masks = pixels.flip(-1), masks.flip(-1)
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # [N,4], ends are outside
    labels = torch.from_numpy(annotation.labels) + 1
    image_id = annotation.image_id
    return pixels, {"boxes": boxes, "labels": labels, "masks": masks, "image_id": image_id}


def train_keys(dataset: CocoDataset, batch_size: int, seed: int) -> Iterator[list[Key]]:
    """Batches without end, each of landscapes or of portraits: less padding."""
    indices, waiting = dataset.with_objects(), defaultdict(list)
    for epoch in itertools.count():
        for place in permutation(len(indices), seed, epoch):
            record = dataset.images[indices[place]]
            group = waiting[record.width >= record.height]
            group.append(Key(indices[place], epoch, None))
            if len(group) == batch_size:
                yield group.copy()
                group.clear()


def rate_at(done: float) -> float:
    """Learning rate, relative to its maximum, after this share of the training."""
    warmup = min(1.0, 0.001 + 0.999 * 26 * done)
    return warmup * 0.1 ** ((done >= 16 / 26) + (done >= 22 / 26))


def train(model: MaskRCNN, dataset: CocoDataset, minutes: float, opts: argparse.Namespace) -> dict:
    """Trains until the CPU minutes are used; returns those, the steps and the epochs."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peak = 0.02 * opts.batch_size / 16
    optimizer = torch.optim.SGD(trained, peak, momentum=0.9, weight_decay=1e-4)
    start, done, steps, shown = cpu_seconds(), 0.0, 0, 0.1
    keys = train_keys(dataset, opts.batch_size, opts.seed)
    model.train()
    for batch in Batches(Samples(dataset, view, opts.seed), keys, opts.workers, collate=list):
        optimizer.param_groups[0]["lr"] = peak * rate_at(done)
        losses = model(*map(list, zip(*batch)))
        loss = sum(losses.values())
        terms = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
        if not loss.isfinite():
            raise FailedRun(f"the loss of Mask R-CNN is not finite at step {steps} ({terms})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps, used = steps + 1, (cpu_seconds() - start) / 60
        done = used / minutes
        if done >= shown:
            info(f"  {used:.2f} of {minutes:.2f} CPU minutes, step {steps}: {terms}")
            shown = done + 0.1
        if done >= 1:
            break
    epochs = steps * opts.batch_size / len(dataset.with_objects())
    return {"CPU minutes": used, "steps": steps, "epochs": epochs}


@torch.inference_mode()
def predict(model: MaskRCNN, dataset: CocoDataset, workers: int) -> list[dict]:
    """COCO results with RLE at the original size."""
    model.eval()
    keys = [[Key(index, 0, None)] for index in range(len(dataset))]
    loader = Batches(Samples(dataset, view), keys, workers, collate=list)
    found = []
    for ((image, target),) in progress(loader, desc="evaluating", leave=False):
        found += to_results(dataset, target["image_id"], model([image])[0])
    return found


def to_results(dataset: CocoDataset, image_id: int, output: dict[str, Tensor]) -> list[dict]:
    """COCO results of what the model returns for one image: labels from 1, masks [M,1,H,W]."""
    masks = rle.encode(output["masks"][:, 0] > 0.5)
    ids = [dataset.categories[label - 1].id for label in output["labels"].tolist()]
    rows = zip(itertools.repeat(image_id), ids, masks, output["scores"].tolist())
    return [dict(zip(FIELDS, row)) for row in rows]


def measure(
    name: str, short_side: int, minutes: float, datasets: dict[str, CocoDataset], opts
) -> dict:
    """Builds, trains and scores one model; returns its row of the table."""
    train_set, val_set = datasets.values()
    torch.manual_seed(opts.seed)
    backbone = zoo.build_backbone(opts.backbone)
    report = weights.load(backbone, opts.pretrained)
    info(f"\n{name}: short side {short_side}\n{report.text}")
    max_dets = max(100, int(val_set.objects_per_image().max()))
    model = build(backbone, len(train_set.categories), short_side, opts.rois, max_dets)
    row = {"run": name, "short side": short_side} | train(model, train_set, minutes, opts)
    detections = predict(model, val_set, opts.workers)
    scores = score(val_set.ground_truth(), detections, max_dets=max_dets)
    for prefix, numbers in (("", scores.headline), ("plain ", scores.metrics)):
        row |= {prefix + key: numbers[key] for key in ("AP", "AP50")}
    return row


def main(argv: list[str]) -> None:
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    datasets = open_splits(opts, ("train", "val"))
    train_set, val_set = datasets.values()
    if not train_set.with_objects():
        raise InputError(f"{train_set.source}: no objects to train on; give other annotations")
    lock = files.FolderLock()
    folder = lock.claim(opts.out, options.RUNS, "maskrcnn", RESULTS, opts.overwrite)
    info(f"{train_set.summary()}\n{val_set.summary()}")
    rows, best = [], opts.short_sides[0]
    if len(opts.short_sides) > 1:
        minutes = TRIAL * opts.cpu_minutes
        rows = [measure("trial", side, minutes, datasets, opts) for side in opts.short_sides]
        best = max(rows, key=lambda row: (row["AP"], row["AP50"]))["short side"]
    rows.append(measure("Mask R-CNN", best, opts.cpu_minutes, datasets, opts))
    about = (
        f"Mask R-CNN of torchvision {torchvision.__version__}, {opts.backbone} from "
        f"{opts.pretrained.name}, seed {opts.seed}. AP and AP50: void removed where the set has "
        "void; plain: as COCO."
    )
    texts = [list(rows[0])]
    for row in rows:
        texts.append([number(x) if isinstance(x, float) else str(x) for x in row.values()])
    info(f"\n{about}\n{aligned(texts, 1)}\n\n{folder}")
    files.write_text(folder / "maskrcnn.md", f"{about}\n\n{pipes(texts, 1)}\n")
    given = json.loads(json.dumps(vars(opts), default=str))
    files.write_json(folder / RESULTS, {"options": given, "rows": rows})
    lock.release()
    for dataset in datasets.values():
        skipped.report_skipped(dataset.bad)


if __name__ == "__main__":
    options.run_entry(main)
