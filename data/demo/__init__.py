"""The built-in demo sets, drawn by code."""
