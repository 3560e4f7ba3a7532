"""Entries for looking into models and runs."""
