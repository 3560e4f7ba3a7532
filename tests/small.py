"""A model of each system, as small as it gets, and targets for it."""

import torch

SMALL = {
    "mobileinst_topformer_tiny": dict(
        width=16, kernel_dim=8, query_width=16, num_heads=2, num_queries=6
    ),
    "mask2former_swin_tiny": dict(
        embed_dim=16, depths=(1, 1, 1, 1), backbone_heads=(1, 2, 2, 4), window_size=4, width=16,
        mask_dim=16, num_heads=2, num_encoder_layers=1, encoder_ffn_width=16, num_queries=6,
        num_layers=1, ffn_width=16, train_points=32,
    ),
    "sparseinst_topformer_tiny": dict(width=16, kernel_dim=8, num_queries=6, convs=2),
}  # fmt: skip


def make_target(labels, seed=0, size=(64, 96), ignore=None):
    """A target of the contract with a square of 20 x 20 pixels for each label."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, side - 20, (), generator=generator)) for side in size)
        mask[y : y + 20, x : x + 20] = True
    return {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "ignore": torch.zeros(size, dtype=torch.bool) if ignore is None else ignore,
        "image_id": seed,
        "size": size,
        "orig_size": size,
    }
