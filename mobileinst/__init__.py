"""Networks and the mathematics of set prediction: tensors in, tensors out, no files."""

__version__ = "0.1.0"
