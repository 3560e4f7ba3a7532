"""Drawings, tables, curves and summaries of runs."""
