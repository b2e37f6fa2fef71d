"""Scores of a model on a data set, exact over ranks, and the job of eval.py."""
