"""Bricks used by more than one room; no brick knows a system."""
