"""Weights from files: everything that fits is loaded and told, or the file is refused."""

from mobileinst.weights.files import FORMAT, WeightFile, open_weights
from mobileinst.weights.hub import hub_settings, hub_weights, require_exact
from mobileinst.weights.loading import load
from mobileinst.weights.names import recognise, torchvision_swin_names
from mobileinst.weights.reading import LoadError, read
from mobileinst.weights.report import Report, Tally
from mobileinst.weights.vocabularies import in_our_names

__all__ = [
    "FORMAT",
    "LoadError",
    "Report",
    "Tally",
    "WeightFile",
    "hub_settings",
    "hub_weights",
    "in_our_names",
    "load",
    "open_weights",
    "read",
    "recognise",
    "require_exact",
    "torchvision_swin_names",
]
