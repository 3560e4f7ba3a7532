"""From files on disk to a batch of tensors. Knows no networks."""
