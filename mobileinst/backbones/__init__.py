"""Backbones: normalised images to a list of maps; each states its channels and strides."""
