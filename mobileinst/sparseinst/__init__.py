"""SparseInst: instance activation maps pick the features of each object (CVPR 2022)."""
