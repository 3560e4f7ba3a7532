"""Loads weights from files with a report of what was loaded, or refuses the file."""

from mobileinst.weights.files import FORMAT, WeightFile, hub_settings, hub_weights, open_weights
from mobileinst.weights.loading import load
from mobileinst.weights.names import backbone_names, in_our_names, recognise
from mobileinst.weights.reading import LoadError, read
from mobileinst.weights.report import Report, fingerprint

__all__ = [
    "FORMAT",
    "LoadError",
    "Report",
    "WeightFile",
    "fingerprint",
    "hub_settings",
    "hub_weights",
    "in_our_names",
    "load",
    "open_weights",
    "read",
    "recognise",
    "backbone_names",
]
