"""Training, evaluation and use: the only package that imports both `data` and `mobileinst`."""
