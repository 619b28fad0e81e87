"""Energy against ESV as SVG, written by hand: one labelled point or line for each contender, ESV on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 640
HEIGHT: Final = 420
LEFT, RIGHT, TOP, BOTTOM = 70, 120, 40, 46
COLOURS: Final = ("#1f6fb2", "#7b4fa3", "#c2571a", "#3b8f4a", "#8a6d1b", "#b0305c")
FLOOR: Final = 1e-7  # where an ESV of 0 is drawn


@dataclass(frozen=True)
class Curve:
    """Points (kWh, ESV) of one contender; ESV 0 is drawn at the floor and said so."""

    name: str
    points: Sequence[tuple[float, float]]


def pareto_plot(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Better is left and down. Raises ValueError when there is nothing to draw."""
    shown = [point for curve in curves for point in curve.points]
    if not shown:
        raise ValueError("curves: allowed at least one point")
    low_x, high_x = 0.0, 1.05 * max(x for x, _ in shown)
    exponents = [math.log10(max(y, FLOOR)) for _, y in shown]
    low_y, high_y = math.floor(min(exponents)), math.ceil(max(exponents) + 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x)
        down = 1.0 - (math.log10(max(y, FLOOR)) - low_y) / max(high_y - low_y, 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="22" font-size="13">{escape(title)}</text>']
    for exponent in range(low_y, high_y + 1):
        x, y = at(low_x, 10.0**exponent)
        end = at(high_x, 10.0**exponent)[0]
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 3:.1f}" font-size="9" text-anchor="end">1e{exponent}</text>')
    step = 10.0 ** math.floor(math.log10(high_x / 2))
    for i in range(int(high_x / step) + 1):
        x, y = at(i * step, 10.0**low_y)
        parts.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" font-size="9" text-anchor="middle">{i * step:g}</text>')
    parts.append(f'<text x="{LEFT + 180}" y="{HEIGHT - 10}" font-size="10">energy, kWh a day</text>')
    parts.append(f'<text x="14" y="{HEIGHT / 2}" font-size="10" transform="rotate(-90 14 {HEIGHT / 2})">ESV (lower is better)</text>')
    labels: list[tuple[float, float]] = []
    for curve, colour in zip(curves, (COLOURS * (len(curves) // len(COLOURS) + 1))[: len(curves)], strict=True):
        places = [at(x, y) for x, y in curve.points]
        if len(places) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[0]
        y -= 5.0
        while any(abs(x - a) < 60 and abs(y - b) < 11 for a, b in labels):
            y += 11.0
        labels.append((x, y))
        none = " (ESV 0)" if curve.points[0][1] == 0.0 else ""
        parts.append(f'<text x="{x + 6:.1f}" y="{y:.1f}" font-size="10" fill="{colour}">{escape(curve.name + none)}</text>')
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" fill="#1b1b1b">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )
