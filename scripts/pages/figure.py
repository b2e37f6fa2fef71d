"""Pictures of a slot: what an attention reads, refines and passes on. Plain SVG in the page's own colours."""

from __future__ import annotations

from html import escape

BOX, GAP, HEIGHT, TOP = 92, 28, 38, 96


def picture(slot: str, reads: str, state: str | None, name: str) -> str:
    """An inline SVG.

    Args:
        slot: block, conv or stage.
        reads: last, all, input or output: the features that it is computed from.
        state: what it passes to the next attention; None for nothing.
        name: the attention's, as the box says.
    """
    labels = {
        "block": ["conv 1x1", "conv 3x3", "conv 1x1", name, "+"],
        "conv": ["conv 1x1", name, "conv 1x1", "+"],
        "stage": ["block 1", "block 2", "block n", name],
    }[slot]
    here = labels.index(name)
    parts = []
    for index, label in enumerate(labels):
        parts.append(_box(index, label, index == here))
        if index:
            parts.append(_arrow(_left(index) - GAP, TOP, _left(index)))
    parts.append(_arrow(0, TOP, _left(0)))
    end = _left(len(labels) - 1) + BOX
    parts.append(_arrow(end, TOP, end + GAP))
    if slot != "stage":  # the shortcut
        middle = _left(len(labels) - 1) + BOX / 2
        parts.append(_path(f"M10 {TOP} V{TOP + 62} H{middle} V{TOP + HEIGHT / 2 + 4}", "shortcut"))
        parts.append(_text((10 + middle) / 2, TOP + 78, "shortcut"))
    if slot == "block" and reads in ("all", "input"):
        sources = range(here - 1) if reads == "all" else [-1]
        for index in sources:
            start = _left(index) + BOX + GAP / 2 if index >= 0 else 16
            parts.append(
                _path(
                    f"M{start} {TOP} V{TOP - 40} H{_left(here) + BOX / 2 - 8 * (here - 1 - index)} V{TOP - HEIGHT / 2 - 4}",
                    "read",
                )
            )
        parts.append(
            _text(_left(1) + BOX / 2, TOP - 48, "pooled outputs of all convolutions" if reads == "all" else "input")
        )
    if state is not None:
        parts.append(_path(f"M0 22 H{_left(here) + BOX / 2 + 16} V{TOP - HEIGHT / 2 - 4}", "state"))
        parts.append(_path(f"M{_left(here) + BOX / 2 + 28} {TOP - HEIGHT / 2} V22 H{end + GAP}", "state"))
        parts.append(_text(end / 2, 14, f"state: {state}"))
    width = end + GAP + 4
    title = f"{name} in the {slot} slot"
    return (
        f'<svg class="slot" viewBox="0 0 {width} {TOP + 86}" width="{width}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _left(index: int) -> float:
    return GAP + index * (BOX + GAP)


def _box(index: int, label: str, chosen: bool) -> str:
    kind = "chosen" if chosen else "plain"
    return (
        f'<rect class="{kind}" x="{_left(index)}" y="{TOP - HEIGHT / 2}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
        f"{_text(_left(index) + BOX / 2, TOP + 5, label)}"
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle">{escape(text)}</text>'


def _arrow(x: float, y: float, end: float) -> str:
    return _path(f"M{x:g} {y} H{end - 4:g}", "flow")


def _path(d: str, kind: str) -> str:
    x, y = _tip(d)
    across = d.rsplit(" ", 1)[-1].startswith("H")
    up = not across and _rises(d)
    head = (
        f"{x - 6:g},{y - 4:g} {x - 6:g},{y + 4:g} {x + 3:g},{y:g}"
        if across
        else f"{x - 4:g},{y + 6:g} {x + 4:g},{y + 6:g} {x:g},{y - 3:g}"
        if up
        else f"{x - 4:g},{y - 6:g} {x + 4:g},{y - 6:g} {x:g},{y + 3:g}"
    )
    return f'<path class="{kind}" d="{d}"/><polygon class="{kind}" points="{head}"/>'


def _points(d: str) -> list[tuple[float, float]]:
    parts, found = d.split(), []
    x = y = 0.0
    tokens = iter(parts)
    for token in tokens:
        if token[0] == "M":
            x, y = float(token[1:]), float(next(tokens))
        elif token[0] == "H":
            x = float(token[1:])
        else:
            y = float(token[1:])
        found.append((x, y))
    return found


def _tip(d: str) -> tuple[float, float]:
    return _points(d)[-1]


def _rises(d: str) -> bool:
    *_, before, tip = _points(d)
    return tip[1] < before[1]
