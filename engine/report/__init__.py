"""Pictures, tables and curves of runs."""
