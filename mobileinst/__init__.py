"""Networks and the mathematics of set prediction: tensors in, tensors out, no files."""
