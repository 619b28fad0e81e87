"""The common frame of every bench: options, table, JSON `{"machine", "commit", "figures": [...]}`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure. `row` is the row of the issue's table (0 = none); `bar` says what must hold, `holds` whether it does."""

    name: str
    value: float
    unit: str
    bar: str = ""
    holds: bool | None = None
    row: int = 0


def options(description: str) -> argparse.ArgumentParser:
    """--quick, --data, --json, as every bench has them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="less data, same code")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TIDEGATE_DATA", "../shared/data")), help="folder of traces")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    return parser


def publish(figures: list[Figure], path: Path | None) -> None:
    """Print the table; write JSON when asked."""
    width = max((len(figure.name) for figure in figures), default=0)
    for figure in figures:
        verdict = "" if figure.holds is None else ("holds" if figure.holds else "MISSED")
        print(f"{figure.name:<{width}}  {figure.value:>12.4g} {figure.unit:<12} {figure.bar:<18} {verdict}")
    if path is not None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
        path.write_text(json.dumps({"machine": machine, "commit": commit, "figures": [asdict(figure) for figure in figures]}, indent=1))


def finish(figures: list[Figure], path: Path | None, *, strict: bool = True) -> None:
    """Publish, say how loaded the machine is, and (strict) exit with 1 where a figure misses its bar."""
    publish(figures, path)
    print(f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if strict and any(figure.holds is False for figure in figures):
        raise SystemExit(1)
