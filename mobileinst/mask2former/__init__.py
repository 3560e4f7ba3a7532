"""Mask2Former, one file per box of the paper's figure."""
