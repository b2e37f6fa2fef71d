"""A run on the disk: its directory, metrics, checkpoints and views. Nothing here trains."""
