"""Data sets, their transformations, and batches as a function of (seed, epoch, step)."""
