"""Networks, losses and post-processing for instance segmentation by set prediction."""

__version__ = "0.1.0"
