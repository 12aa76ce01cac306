"""Charts as inline SVG: lines, bars and grouped bars, with a title, axes and a legend. Nothing but text and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardkit.pages import attribute

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
"""Classes of the shared style, with a value each for light and dark."""
_WIDEST = 40  # bar
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 290, 46, 12, 42, 44


@dataclass(frozen=True)
class Line:
    """points: (x, y), both from 0 to 1."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def _x(value: float) -> float:
    return _LEFT + value * (_W - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return _H - _BOTTOM - value * (_H - _TOP - _BOTTOM)


def line_chart(title: str, x_name: str, y_name: str, lines: Sequence[Line], *, diagonal: bool = False) -> str:
    """Lines in the unit square."""
    body = [_grid([f"{v / 5:.1f}" for v in range(6)], [f"{v / 5:.1f}" for v in range(6)])]
    if diagonal:
        body.append(f'<path class="guide" d="M{_x(0):.1f},{_y(0):.1f}L{_x(1):.1f},{_y(1):.1f}"/>')
    for i, line in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        at = [f"{_x(x):.1f},{_y(y):.1f}" for x, y in line.points]
        if len(at) > 1:
            body.append(f'<polyline class="line {colour}" points="{" ".join(at)}"/>')
        if line.dots or len(at) == 1:
            for point in at:
                x, _, y = point.partition(",")
                body.append(f'<circle cx="{x}" cy="{y}" r="3" class="fill {colour}"/>')
    return _frame(title, x_name, y_name, body, [line.name for line in lines])


def bar_chart(
    title: str, x_name: str, y_name: str, labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]
) -> str:
    """Grouped bars, scaled to the highest. labels: one for each group; every n-th is shown where they are many."""
    top = max((v for _, values in series for v in values), default=0.0) or 1.0
    body = [_grid([], [_number(top * v / 4) for v in range(5)])]
    group = (_W - _LEFT - _RIGHT) / max(len(labels), 1)
    width = min(group * 0.84 / max(len(series), 1), _WIDEST)
    margin = (group - width * len(series)) / 2
    every = -(-len(labels) // 12)
    for i, (_, values) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        for j, value in enumerate(values):
            x, y = _LEFT + j * group + margin + i * width, _y(value / top)
            body.append(
                f'<rect class="fill {colour}" x="{x:.1f}" y="{y:.1f}" '
                f'width="{max(width, 0.5):.1f}" height="{_y(0) - y:.1f}">'
                f"<title>{attribute(labels[j])}: {_number(value)}</title></rect>"
            )
    for j, label in enumerate(labels):
        if j % every == 0:
            x = _LEFT + (j + 0.5) * group
            body.append(f'<text x="{x:.1f}" y="{_H - _BOTTOM + 13}" text-anchor="middle">{attribute(label[:9])}</text>')
    return _frame(title, x_name, y_name, body, [name for name, _ in series])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"


def _grid(x_marks: Sequence[str], y_marks: Sequence[str]) -> str:
    out = []
    for i, mark in enumerate(y_marks):
        y = _y(i / (len(y_marks) - 1))
        out.append(f'<path class="grid" d="M{_LEFT},{y:.1f}H{_W - _RIGHT}"/>')
        out.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{attribute(mark)}</text>')
    for i, mark in enumerate(x_marks):
        x = _x(i / (len(x_marks) - 1))
        out.append(f'<text x="{x:.1f}" y="{_H - _BOTTOM + 13}" text-anchor="middle">{attribute(mark)}</text>')
    return "".join(out)


def _frame(title: str, x_name: str, y_name: str, body: Sequence[str], names: Sequence[str]) -> str:
    legend, x, y = [], _LEFT, _H - 3
    for i, name in enumerate(names):
        shown = name if len(name) <= 40 else name[:39] + "…"
        width = 24 + 6 * len(shown)
        if x > _LEFT and x + width > _W:
            x, y = _LEFT, y + 14
        legend.append(f'<rect x="{x}" y="{y - 8}" width="9" height="9" class="fill {COLOURS[i % len(COLOURS)]}"/>')
        legend.append(f'<text x="{x + 12}" y="{y}">{attribute(shown)}</text>')
        x += width
    return (
        f'<svg class="chart" viewBox="0 0 {_W} {y + 3}" width="{_W}" height="{y + 3}" role="img" '
        f'aria-label="{attribute(title)}">'
        f'<text class="title" x="{_LEFT}" y="16">{attribute(title)}</text>'
        f'<text x="{_W - _RIGHT}" y="{_H - 18}" text-anchor="end">{attribute(x_name)}</text>'
        f'<text x="4" y="{_TOP - 12}">{attribute(y_name)}</text>{"".join(body)}{"".join(legend)}</svg>'
    )
