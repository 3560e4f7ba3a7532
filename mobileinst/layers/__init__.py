"""Modules that backbones and systems share."""
