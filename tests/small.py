"""A model of each system, as small as it gets."""

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
