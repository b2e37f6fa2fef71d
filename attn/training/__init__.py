"""The loop, what it is set up from, and how it ends."""
