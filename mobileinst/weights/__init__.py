"""Weights from files: everything that fits is loaded and told, or the file is refused."""

from mobileinst.weights.files import FORMAT, LoadError, WeightFile, open_weights, read
from mobileinst.weights.hub import open_hub
from mobileinst.weights.loading import load
from mobileinst.weights.names import recognise, torchvision_swin_names
from mobileinst.weights.report import Report, Tally

__all__ = [
    "FORMAT",
    "LoadError",
    "Report",
    "Tally",
    "WeightFile",
    "load",
    "open_hub",
    "open_weights",
    "read",
    "recognise",
    "torchvision_swin_names",
]
