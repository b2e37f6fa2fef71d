"""What attention does, as figures: one figure, one file, which measures (arrays) and draws (a matplotlib figure) in two steps.

`trace` reads networks, `images` picks and loads images, `subjects` loads checkpoints, `style` and `files` are what all pictures share,
and `command` is the job of scripts/analyse.py.
"""
