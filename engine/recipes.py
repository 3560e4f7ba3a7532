"""Named recipes: the model and the numbers of a training.

A recipe holds option values; its `set` holds keywords of the model. What it does not name keeps the
default of `engine.options.TrainOptions`; what the user gives overrides it, keyword by keyword.
"""

# fmt: off

# MobileInst for small sets, our settings: narrower than the paper's decoder, keys at stride 16, a
# local decoder guided by the first masks, and a class for every cell as an auxiliary loss.
MOBILEINST = {"model": "mobileinst_topformer_tiny", "warmup": 100}
SMALL_MOBILEINST = {
    "width": 64, "kernel_dim": 64, "kv_stride": 16, "guided": True, "semantic_weight": 1.0,
    "drop_path": 0.0,
}

# Masks at stride 8 are too large at the default of 0.45: VOC .411 / .612 there, .422 / .623 at .55.
# At stride 4 nuclei lose by it (engine/fit.py, assets/results/neighbours.md).
COARSE_MASKS = {"mask_threshold": 0.55}

# Mask2Former for a CPU: the published sizes, 47 million parameters and more, need pretrained
# weights and a GPU. 30 queries are enough for the demo set, which has up to 18 objects per image.
MASK2FORMER = {"model": "mask2former_swin_tiny", "warmup": 100}
SMALL_MASK2FORMER = {
    "width": 64, "mask_dim": 64, "num_heads": 4, "num_encoder_layers": 2, "encoder_ffn_width": 256,
    "num_queries": 30, "num_layers": 3, "ffn_width": 256, "train_points": 1024, "drop_path": 0.0,
}
# Where no pretrained backbone is at hand; left out for models with another backbone.
NARROW_SWIN = {
    "embed_dim": 32, "depths": (2, 2, 2, 2), "backbone_heads": (1, 2, 4, 8), "window_size": 4,
}

# SparseInst for a CPU: a width of 64 costs what MobileInst's decoders cost, the published 256 cost
# twelve times as much.
SPARSEINST = {"model": "sparseinst_topformer_tiny", "warmup": 100}
SMALL_SPARSEINST = {"width": 64, "kernel_dim": 64}

# The numbers of SparseInst's published training, which MobileInst's paper seems to follow.
COCO = {
    "image_size": 640,
    "canvas": [
        *((448, 640), (512, 704), (576, 768), (640, 896)),
        *((640, 448), (704, 512), (768, 576), (896, 640)),
    ],
    "scale": (0.7, 2.0), "colour": 0.0, "batch_size": 8, "accumulate": 8, "iterations": 270_000,
    "schedule": "multistep", "drops": (210_000, 250_000), "warmup": 1000, "lr": 5e-5, "clip": 0.0,
    "average": 0.9998, "log_every": 50, "workers": 8,
}

RECIPES: dict[str, dict[str, object]] = {
    # The built-in demo set: 240 images of 320 x 240, seen at 171 x 128; minutes on two CPU cores.
    # Known result: val AP 0.222, AP50 0.535.
    "demo": {
        **MOBILEINST, "image_size": 128, "canvas": [(128, 192)], "scale": (0.8, 1.4),
        "batch_size": 8, "epochs": 50, "eval_every": 25, "lr": 2e-3, "average": 0.998,
        "set": SMALL_MOBILEINST | {"num_queries": 25},
    },
    # The same from a pretrained backbone, at 256 x 192 with masks at stride 4. Known result:
    # EfficientNet-Lite0, val AP 0.516, AP50 0.861.
    "demo-pretrained": {
        **MOBILEINST, "image_size": 192, "canvas": [(192, 256)], "scale": (0.7, 1.6),
        "copy_paste": 0.4, "batch_size": 8, "epochs": 26, "eval_every": 13, "lr": 2e-3,
        "backbone_factor": 0.1, "average": 0.998,
        "set": SMALL_MOBILEINST | {
            "num_queries": 25, "placed": True, "mask_stride": 4, "frozen_norms": True,
            "frozen_depthwise": True, "frozen_stride": 4,
        },
    },
    # Hundreds to thousands of images, from random values: small images (171 x 128), small batches
    # and many epochs give more steps in the same time. Known result: VOC, val AP 0.106, AP50 0.219.
    "small": {
        **MOBILEINST, "image_size": 128, "scale": (0.7, 1.8), "copy_paste": 0.25, "batch_size": 4,
        "epochs": 130, "eval_every": 26, "lr": 1.4e-3, "average": 0.999,
        "set": SMALL_MOBILEINST | COARSE_MASKS | {"num_queries": 50},
    },
    # The same from a pretrained backbone, at 427 x 320: its norms and layers up to stride 16 are
    # frozen, the rest of it learns slowly. Known result: VOC, EfficientNet-Lite0, mean of two
    # seeds: val AP 0.404, AP50 0.608; frozen up to stride 4 0.415, 0.620 in a third more time.
    "small-pretrained": {
        **MOBILEINST, "image_size": 320, "scale": (0.7, 1.8), "copy_paste": 0.25, "batch_size": 4,
        "epochs": 29, "eval_every": 6, "lr": 1e-3, "backbone_factor": 0.1, "average": 0.998,
        "set": SMALL_MOBILEINST | COARSE_MASKS | {
            "num_queries": 49, "placed": True, "aux_matches": 3, "frozen_norms": True,
            "frozen_stride": 16,
        },
    },
    # Self-test: a few images, until they are overfit. Without the semantic term, which helps on new
    # images only. Known result: 8 images of VOC at 512, AP 0.986.
    "overfit": {
        **MOBILEINST, "batch_size": 4, "iterations": 240, "eval_every": 60, "lr": 1e-3,
        "average": 0.998,
        "set": SMALL_MOBILEINST | {"num_queries": 50, "semantic_weight": 0.0},
    },
    # COCO: 64 images a step, about 146 epochs of train2017. Not run whole here. The paper reports
    # 31.2 mask AP on test-dev (TopFormer, 640; AAAI 2024), a third-party reproduction 27.2 on
    # val2017. On a larger GPU --batch-size 64 --accumulate 1 is the same up to BatchNorm.
    "coco": {
        "model": "mobileinst_topformer_base", **COCO, "backbone_factor": 0.5,
        "set": {"num_queries": 100, "kv_stride": 64, "pixel_weight": 5.0},
    },
    # The demo set of shrimps and their organs: 160 images of 320 x 240, seen at 256 x 192, organs
    # of ten pixels among them. Known result: val AP 0.354, AP50 0.711.
    "mask2former-demo": {
        **MASK2FORMER, "image_size": 192, "canvas": [(192, 256)], "scale": (0.8, 1.4),
        "batch_size": 2, "epochs": 50, "eval_every": 10, "lr": 1e-3, "average": 0.998,
        "set": SMALL_MASK2FORMER | NARROW_SWIN,
    },
    # The same from a pretrained backbone. Known result: EfficientNet-Lite0, AP 0.578, AP50 0.882.
    "mask2former-demo-pretrained": {
        **MASK2FORMER, "image_size": 192, "canvas": [(192, 256)], "scale": (0.8, 1.4),
        "batch_size": 2, "epochs": 40, "eval_every": 10, "lr": 1e-3, "backbone_factor": 0.3,
        "average": 0.998,
        "set": SMALL_MASK2FORMER | {
            "frozen_norms": True, "frozen_depthwise": True, "frozen_stride": 4,
        },
    },
    # Hundreds of images, seen at about 341 x 256, from random values.
    "mask2former-small": {
        **MASK2FORMER, "image_size": 256, "scale": (0.7, 1.8), "batch_size": 4, "epochs": 100,
        "eval_every": 10, "lr": 1e-3, "average": 0.998,
        "set": SMALL_MASK2FORMER | NARROW_SWIN,
    },
    # The same from a pretrained backbone. Known result: Penn-Fudan, EfficientNet-Lite0, val AP
    # 0.687, AP50 0.982.
    "mask2former-small-pretrained": {
        **MASK2FORMER, "image_size": 320, "scale": (0.7, 1.8), "colour": 0.6, "copy_paste": 0.6,
        "batch_size": 2, "epochs": 32, "eval_every": 4, "lr": 1e-3, "backbone_factor": 0.3,
        "average": 0.998,
        "set": SMALL_MASK2FORMER | {
            "frozen_norms": True, "frozen_depthwise": True, "frozen_stride": 4,
            "iou_targets": True, "stable_scores": True,
            "mask_threshold": 0.55,  # training images: .749 at 0.5, .757 at 0.58
        },
    },
    # The whole network at its published size, fine-tuned on a GPU.
    "mask2former-pretrained": {
        **MASK2FORMER, "image_size": 512, "scale": (0.5, 1.8), "amp": "bf16", "batch_size": 8,
        "epochs": 50, "eval_every": 5, "lr": 1e-4, "backbone_factor": 0.1, "average": 0.999,
    },
    # Self-test, as `overfit`. Known result: 4 images of Penn-Fudan, AP 0.963, AP50 1.000.
    "mask2former-overfit": {
        **MASK2FORMER, "image_size": 192, "batch_size": 4, "iterations": 300, "eval_every": 75,
        "lr": 1e-3, "average": 0.998,
        "set": SMALL_MASK2FORMER | NARROW_SWIN,
    },
    # SparseInst: the recipes of MobileInst of the same ending, without what is MobileInst's own and
    # at half the learning rate: 6 epochs of the demo set at 1e-3, 2e-3, 4e-3 gave AP 0.046, 0.028
    # and 0.005.
    "sparseinst-demo": {
        **SPARSEINST, "image_size": 128, "canvas": [(128, 192)], "scale": (0.8, 1.4),
        "batch_size": 8, "epochs": 50, "eval_every": 25, "lr": 1e-3, "average": 0.998,
        "set": SMALL_SPARSEINST | {"num_queries": 25},
    },
    "sparseinst-demo-pretrained": {
        **SPARSEINST, "image_size": 192, "canvas": [(192, 256)], "scale": (0.7, 1.6),
        "copy_paste": 0.4, "batch_size": 8, "epochs": 26, "eval_every": 13, "lr": 1e-3,
        "backbone_factor": 0.1, "average": 0.998,
        "set": SMALL_SPARSEINST | {"num_queries": 25, "frozen_norms": True, "frozen_stride": 4},
    },
    "sparseinst-small": {
        **SPARSEINST, "image_size": 128, "scale": (0.7, 1.8), "copy_paste": 0.25, "batch_size": 4,
        "epochs": 110, "eval_every": 10, "lr": 7e-4, "average": 0.999,
        "set": SMALL_SPARSEINST | {"num_queries": 50},
    },
    "sparseinst-small-pretrained": {
        **SPARSEINST, "image_size": 256, "scale": (0.7, 1.8), "copy_paste": 0.25, "batch_size": 4,
        "epochs": 40, "eval_every": 5, "lr": 5e-4, "backbone_factor": 0.1, "average": 0.998,
        "set": SMALL_SPARSEINST | {"num_queries": 50, "frozen_norms": True, "frozen_stride": 4},
    },
    # The whole network at its published size, fine-tuned on a GPU. Not run here.
    "sparseinst-pretrained": {
        **SPARSEINST, "model": "sparseinst_resnet50_giam", "image_size": 512, "scale": (0.5, 1.8),
        "amp": "bf16", "batch_size": 8, "epochs": 50, "eval_every": 5, "lr": 5e-5,
        "average": 0.999,
    },
    # Self-test, as `overfit`.
    "sparseinst-overfit": {
        **SPARSEINST, "batch_size": 4, "iterations": 240, "eval_every": 60, "lr": 1e-3,
        "average": 0.998, "set": SMALL_SPARSEINST | {"num_queries": 50},
    },
    # COCO, as published but for the augmentation. Not run here. The authors report 33.4 mask AP on
    # val2017 (ResNet-50, 608; CVPR 2022).
    "sparseinst-coco": {"model": "sparseinst_resnet50_giam", **COCO},
    # For engine.tools.reproduce: a few minutes on one CPU core, to a mask AP of about 0.07; the
    # same bits need a fixed number of threads.
    "reproduce": {
        **MASK2FORMER, "from_scratch": True, "device": "cpu", "threads": 1, "image_size": 128,
        "canvas": [(128, 192)], "scale": (0.8, 1.4), "batch_size": 2, "epochs": 10, "eval_every": 0,
        "lr": 1e-3, "warmup": 40, "average": 0.98,
        "set": SMALL_MASK2FORMER | NARROW_SWIN | {"drop_path": 0.1},
    },
}

# fmt: on

FITTED = tuple(name for name in RECIPES if "small" in name)  # changed by engine/fit.py
DEMOS = tuple(name for name in RECIPES if "demo" in name)  # of the built-in sets
ANY_MODEL = (*DEMOS, *FITTED)  # the model follows from the weights at hand


def values_of(
    name: str, model: str | None = None, overfit: bool = False, pretrained: bool = False
) -> tuple[str, dict[str, object]]:
    """Name and option values of a recipe, or of its variant.

    Args:
        model: the user's choice, if any.
        overfit, pretrained: whether these options are given; they choose the variant.
    """
    model = model or str(RECIPES[name]["model"])
    has_swin = "_swin_" in model
    for_overfit, for_weights, for_published = variants(name)
    if overfit:
        name = for_overfit
    elif pretrained:
        name = for_published if has_swin or "_resnet50" in model else for_weights
    keywords = dict(RECIPES[name].get("set", {}))
    if not has_swin:
        keywords = {key: value for key, value in keywords.items() if key not in NARROW_SWIN}
    return name, RECIPES[name] | {"set": keywords}


def variants(name: str) -> tuple[str, str, str]:
    """The recipes that --overfit, --pretrained, and --pretrained with the paper's backbone choose
    instead; the recipe itself where there are none.
    """
    system, dash, kind = name.rpartition("-")
    if kind not in ("demo", "small"):
        return name, name, name
    small, large = f"{name}-pretrained", f"{system}{dash}pretrained"
    return f"{system}{dash}overfit", small, large if large in RECIPES else small
