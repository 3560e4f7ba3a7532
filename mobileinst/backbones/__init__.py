"""Backbones: normalised images [B,3,H,W] of any size -> list of maps, finest first.

The map at stride s has the grid ceil(H/s) × ceil(W/s). Every backbone states the `channels` and
`strides` of its maps, the `mean` and `std` that its published weights expect pixels in 0..1 to be
normalised with, and `layers_until(stride)`, all layers that work at this stride or a finer one. One
with layers that only its last map needs lists them as `last_map_layers`.
"""
