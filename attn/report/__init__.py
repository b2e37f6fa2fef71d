"""Runs side by side: what they reached over seeds, what can be told apart, and one self-contained page of it.

`runs` finds and groups them, `verdict` tests pairs of methods, `repeat` says how to repeat them, `printed` finds the papers' rows
that they are, `figures` takes pictures that lie beside them, `charts` draws, and `page` puts all of it into `page.html.j2`.
"""
