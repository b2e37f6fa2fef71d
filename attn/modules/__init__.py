"""Attention modules: one paper, one file."""
