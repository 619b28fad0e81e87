"""Figures of the forecast benches as SVG, written by hand: fan charts (what was said against what came) and coverage by horizon.

A drawing is a grid of panels; a panel maps data to its own square by two linear scales. No dependency, no fonts embedded, no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from coordinator.model import LEVELS

WIDTH: Final = 300
HEIGHT: Final = 170
MARGIN: Final = 34
COLUMNS: Final = 3
INK: Final = "#1b1b1b"
BANDS: Final = ((0.025, 0.975, "#cfe3f5"), (0.1, 0.9, "#9cc4e8"), (0.25, 0.75, "#5f9fd4"))
COLOURS: Final = ("#1f6fb2", "#c2571a", "#3b8f4a", "#7b4fa3")

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Fan:
    """One forecast: quantiles [h, q] at LEVELS for the buckets after `origin`."""

    origin: int
    quantiles: Array


@dataclass(frozen=True, kw_only=True)
class FanPanel:
    """A stretch of one series, `values` [b] from bucket `first` on (NaN = gap), and forecasts issued within it."""

    title: str
    first: int
    values: Array
    fans: tuple[Fan, ...]


@dataclass(frozen=True, kw_only=True)
class CoveragePanel:
    """Realised coverage by horizon, name -> (nominal, realised [h])."""

    title: str
    curves: tuple[tuple[str, float, Array], ...]


class _Frame:
    """One panel's square and its scales."""

    def __init__(self, place: int, title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._left = (place % COLUMNS) * WIDTH + MARGIN
        self._top = (place // COLUMNS) * HEIGHT + 22
        self._across, self._down = WIDTH - MARGIN - 10, HEIGHT - 48
        self._x, self._y = x, y
        self.parts: list[str] = [
            f'<text x="{self._left}" y="{self._top - 7}" font-size="11" font-weight="bold">{escape(title)}</text>',
            f'<rect x="{self._left}" y="{self._top}" width="{self._across}" height="{self._down}" fill="none" stroke="#bbb"/>',
        ]
        for value in y:
            self.parts.append(
                f'<text x="{self._left - 3}" y="{self._at(x[0], value)[1] + 3:.1f}" font-size="8" text-anchor="end">{value:.3g}</text>'
            )

    def _at(self, x: float, y: float) -> tuple[float, float]:
        share_x = (x - self._x[0]) / max(self._x[1] - self._x[0], 1e-12)
        share_y = (y - self._y[0]) / max(self._y[1] - self._y[0], 1e-12)
        return self._left + self._across * share_x, self._top + self._down * (1.0 - min(max(share_y, 0.0), 1.0))

    def line(self, x: Array, y: Array, colour: str, width: float = 1.0, dashed: bool = False) -> None:
        """A line that is broken at NaN."""
        pieces: list[list[str]] = [[]]
        for a, b in zip(x, y, strict=True):
            if np.isnan(b):
                pieces.append([])
            else:
                pieces[-1].append("{:.1f},{:.1f}".format(*self._at(float(a), float(b))))
        dash = ' stroke-dasharray="3 2"' if dashed else ""
        for piece in pieces:
            if len(piece) > 1:
                self.parts.append(f'<polyline points="{" ".join(piece)}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def band(self, x: Array, low: Array, high: Array, colour: str) -> None:
        """The area between two lines."""
        if np.isnan(low).any() or np.isnan(high).any():
            return
        there = [self._at(float(a), float(b)) for a, b in zip(x, high, strict=True)]
        back = [self._at(float(a), float(b)) for a, b in zip(x, low, strict=True)][::-1]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in (*there, *back))
        self.parts.append(f'<polygon points="{points}" fill="{colour}"/>')

    def label(self, x: float, y: float, text: str, colour: str) -> None:
        """Small text at a point."""
        a, b = self._at(x, y)
        self.parts.append(f'<text x="{a:.1f}" y="{b - 3:.1f}" font-size="8" fill="{colour}">{escape(text)}</text>')


def fan_charts(panels: Sequence[FanPanel], path: Path) -> None:
    """Bands of 95, 80 and 50 %, the median and what came."""
    frames = []
    for place, panel in enumerate(panels):
        shown = [panel.values[~np.isnan(panel.values)], *(fan.quantiles[:, LEVELS.index(0.9)] for fan in panel.fans)]
        top = max((float(part.max()) for part in shown if len(part)), default=1.0)
        last = panel.first + len(panel.values) - 1
        frame = _Frame(place, panel.title, (panel.first, last), (0.0, 1.15 * top if top > 0 else 1.0))
        for fan in panel.fans:
            x = fan.origin + 1 + np.arange(len(fan.quantiles))
            for low, high, colour in BANDS:
                frame.band(x, fan.quantiles[:, LEVELS.index(low)], fan.quantiles[:, LEVELS.index(high)], colour)
            frame.line(x, fan.quantiles[:, LEVELS.index(0.5)], COLOURS[0], 1.2)
        frame.line(np.arange(panel.first, last + 1), panel.values, INK, 0.9)
        frames.append(frame)
    _write(frames, path, "Forecasts of the next hour (bands 95, 80, 50 %, median) against what came (black)")


def coverage_charts(panels: Sequence[CoveragePanel], path: Path) -> None:
    """Realised share by step; the shaded strip is the nominal share +- two points."""
    frames = []
    for place, panel in enumerate(panels):
        frame = _Frame(place, panel.title, (1, max(2, *(len(curve) for _, _, curve in panel.curves))), (0.6, 1.0))
        for (name, nominal, curve), colour in zip(panel.curves, COLOURS, strict=False):
            steps = np.arange(1, len(curve) + 1)
            flat = np.full(len(curve), nominal)
            frame.band(steps, flat - 0.02, flat + 0.02, "#ececec")
            frame.line(steps, flat, colour, 0.7, dashed=True)
            frame.line(steps, curve, colour, 1.6)
            frame.label(1.2, nominal, name, colour)
        frames.append(frame)
    _write(frames, path, "Realised coverage by step (5 to 60 minutes); strip = nominal +- 2 points, scale .6 to 1")


def _write(frames: list[_Frame], path: Path, title: str) -> None:
    rows = max(1, -(-len(frames) // COLUMNS))
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 24
    body = "\n".join(part for frame in frames for part in frame.parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 -24 {width} {height}" '
        f'font-family="sans-serif" fill="{INK}">\n'
        f'<rect x="0" y="-24" width="{width}" height="{height}" fill="white"/>\n'
        f'<text x="8" y="-8" font-size="13">{escape(title)}</text>\n{body}\n</svg>\n',
        encoding="utf-8",
    )
