"""The measurements of `scripts/benchmark.py`, one file each; `measure` is what they share.

A measurement is a module with a docstring, `add_options(parser)` and `run(options) -> exit status`, named in `COMMANDS` of
`scripts/benchmark.py`. It imports torch only when it runs.
"""
