"""Example: train with your own parts instead of the standard ones.

Takes the options of engine.train. Inherit, override what differs, and pass the parts to `zoo.build`
under their names in the model. These override nothing: engine.tools.reproduce checks that they lead
to the same weights, bit for bit. For parts with other parameters call evaluate.main, predict.main
and visualize.main with `build`, too.
"""

from dataclasses import asdict

from data.errors import InputError
from engine import options, train
from mobileinst import zoo
from mobileinst.backbones.swin import SwinTransformer
from mobileinst.mask2former.model import Mask2FormerConfig
from mobileinst.mask2former.pixel_decoder import PixelDecoder
from mobileinst.mask2former.query_decoder import QueryDecoder

MODEL = "mask2former_swin_tiny"  # whose parts these are


class OwnConfig(Mask2FormerConfig):
    """The config of the model."""


class OwnBackbone(SwinTransformer):
    """Normalised images -> maps at strides 4, 8, 16, 32."""


class OwnPixelDecoder(PixelDecoder):
    """Those maps -> maps of one width at strides 32, 16, 8, and mask features at stride 4."""


class OwnQueryDecoder(QueryDecoder):
    """Both -> a class and a mask for each query."""


def build(standard: Mask2FormerConfig, seed: int = 0) -> zoo.Built:
    """Model, criterion and post-processing; raises InputError for another model than `MODEL`."""
    if type(standard) is not Mask2FormerConfig or standard.backbone != "swin_tiny":
        raise InputError(f"the parts here are those of {MODEL}; choose it by --model")
    config = OwnConfig(**asdict(standard))
    backbone = OwnBackbone(**config.backbone_keywords())
    pixel_decoder = OwnPixelDecoder(
        backbone.channels,
        config.width,
        config.mask_dim,
        config.num_encoder_layers,
        config.num_heads,
        config.points_per_level,
        config.encoder_ffn_width,
    )
    query_decoder = OwnQueryDecoder(
        config.width,
        config.mask_dim,
        config.num_classes,
        config.num_queries,
        config.width,
        config.num_heads,
        config.ffn_width,
        config.num_layers,
    )
    parts = {"backbone": backbone, "pixel_decoder": pixel_decoder, "query_decoder": query_decoder}
    return zoo.build(config, config.num_classes, seed=seed, **parts)


if __name__ == "__main__":
    options.run_entry(lambda argv: train.main(argv, build))
