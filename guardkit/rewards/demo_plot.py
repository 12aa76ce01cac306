"""Line charts as SVG, for the figures of the demonstration and of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#b04a2f", "#2f6db0", "#3f8a4a", "#8a6d2f")
_WIDE, _HIGH, _LEFT, _LOW, _TOP = 340, 240, 44, 40, 44
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart. lines: points by name; labels: texts at the points of a line; level: a dashed line, with its name."""

    title: str
    x: str
    lines: Mapping[str, Points]
    top: float = 1.0
    labels: Mapping[str, Sequence[str]] | None = None
    level: tuple[str, float] | None = None


def smooth(values: Sequence[float], over: int = 5) -> list[float]:
    """The mean of each value and of those up to `over - 1` before it."""
    parts = [values[max(0, i + 1 - over) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def svg(panels: Sequence[Panel]) -> str:
    """The panels beside each other."""
    inner = [line for i, panel in enumerate(panels) for line in _panel(panel, i * _WIDE)]
    size = f'width="{_WIDE * len(panels)}" height="{_HIGH}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *inner, "</svg>"]) + "\n"


def _panel(panel: Panel, start: float) -> list[str]:
    farthest = max([x for points in panel.lines.values() for x, _ in points] + [1e-9])

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = x / farthest * (_WIDE - _LEFT - 20), min(y / panel.top, 1) * (_HIGH - _LOW - _TOP)
        return round(start + _LEFT + across, 1), round(_HIGH - _LOW - up, 1)

    def path(points: Points) -> str:
        return "M" + "L".join("{},{}".format(*at(x, y)) for x, y in points)

    out = [
        f'<path d="{path([(0, panel.top), (0, 0), (farthest, 0)])}" fill="none" stroke="#444"/>',
        _text(start + _LEFT, 16, panel.title, "#222"),
        _text(start + _LEFT - 4, _TOP + 4, f"{panel.top:g}", "#222", "end"),
        _text(start + _LEFT - 4, _HIGH - _LOW, "0", "#222", "end"),
        _text(start + _WIDE - 20, _HIGH - _LOW + 16, f"{farthest:.0f}", "#222", "end"),
        _text(start + _WIDE / 2, _HIGH - 8, panel.x, "#222", "middle"),
    ]
    if panel.level is not None:
        name, y = panel.level
        out.append(f'<path d="{path([(0, y), (farthest, y)])}" stroke="#888" stroke-dasharray="4"/>')
        out.append(_text(start + _WIDE - 20, at(0, y)[1] - 4, name, "#888", "end"))
    along = start + _LEFT
    for (name, points), colour in zip(panel.lines.items(), COLOURS, strict=False):
        if points:
            out.append(f'<path d="{path(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), label in zip(points, (panel.labels or {}).get(name, ()), strict=False):
            across, down = at(x, y)
            out.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
            out.append(_text(across, down - 6, label, colour, "middle"))
        out.append(_text(along, 30, name, colour))
        along += 7 * len(name) + 14
    return out


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
