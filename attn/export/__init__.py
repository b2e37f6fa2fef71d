"""Trained networks as files for use without this package: one format, one file."""
