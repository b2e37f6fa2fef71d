"""Comparisons of many attentions under one recipe, over the same seeds: what to run, and what the runs allow one to conclude."""
