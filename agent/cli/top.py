"""`tidegate-agent top`: the newest sample as a screen, like virt-top, without any library for terminals.

`screen` is pure: an answer of the agent in, lines out. Demand is marked ">" where a limit held the VM back: it is at least that much.
Where there is room, columns follow of what is measured and not shipped (VmDetail); the rest of it is in `top --json` and /metrics.
On a terminal the alternate screen is used and left again however the program ends; elsewhere screens follow one another.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from agent.cli.door import Door, printable
from agent.cli.figures import bits, cores, counted, percent, size
from shared.control import Unreachable

Row = Mapping[str, Any]

COLUMNS: Final = (
    ("NAME", 16),
    ("DEMAND", 7),
    ("CPU", 6),
    ("QUOTA", 6),
    ("VCPU", 4),
    ("RDY%", 5),
    ("THR%", 5),
    ("PSI c/m/i", 9),
    ("MEM", 6),
    ("USED", 6),
    ("DISK/s", 7),
    ("NET b/s", 7),
    ("FLAGS", 5),
)
DETAILS: Final = (("GROUP", 6), ("PKT/s", 7), ("DROP/s", 6), ("CTX/s", 7), ("IPC", 5))  # before the flags
_WIDE: Final = sum(wide + 1 for _, wide in (*COLUMNS, *DETAILS)) - 1
SORTS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "cpu": lambda row: -(row.get("cpu_used_millicores") or 0),
    "ready": lambda row: -(row.get("cpu_ready_permille") or 0),
    "memory": lambda row: -(row.get("memory_allocated_bytes") or 0),
    "disk": lambda row: -(_sum(row, "disk_read_bytes_per_s", "disk_write_bytes_per_s") or 0),
    "net": lambda row: -(_sum(row, "net_rx_bits_per_s", "net_tx_bits_per_s") or 0),
    "name": lambda row: row["name"],
}
KEYS: Final = {"c": "cpu", "r": "ready", "m": "memory", "d": "disk", "n": "net", "s": "name"}


def screen(answer: Mapping[str, Any], sort: str, width: int, height: int) -> list[str]:
    """At most `height` lines of at most `width` characters."""
    status, host, capacity = answer["status"], answer["host"], answer["capacity"]
    state = f"PAUSED by {', '.join(status['paused_by'])}" if status["paused_by"] else f"mode {status['mode']}"
    state += " (pinned)" if status["mode_pinned"] else ""
    link = "connected" if status["link_up"] else "no coordinator"
    used, all_cores = cores(host.get("cpu_used_millicores")), capacity["cpu_millicores"] / 1000
    pressure = "/".join(percent(host.get(f"psi_{what}_some_permille")) for what in ("cpu", "memory", "io"))
    lines = [
        f"tidegate-agent {status['host_id']}  {state}  {link}  {counted(status['vms'], 'VM')}  {status['steps_in_flight']} in flight"
        f"  every {status['sampling_period_s']:g} s",
        f"host  cpu {used} of {all_cores:g}  memory free {size(host.get('memory_available_bytes'))} of {size(capacity['memory_bytes'])}"
        f"  pressure c/m/i {pressure} %  net rx {bits(host.get('net_rx_bits_per_s'))} tx {bits(host.get('net_tx_bits_per_s'))}",
    ]
    if status["sampling_failures"]:
        lines.append("failed: " + "; ".join(f"{name}: {what}" for name, what in sorted(status["sampling_failures"].items())))
    columns = (*COLUMNS[:-1], *DETAILS, COLUMNS[-1]) if width >= _WIDE else COLUMNS
    lines.append(_aligned([name for name, _ in columns], columns))
    room = max(0, height - len(lines))
    rows = sorted(answer["vms"], key=lambda row: (SORTS[sort](row), row["name"]))
    shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
    for row in shown:
        details = _details(row.get("detail") or {}) if width >= _WIDE else ()
        lines.append(_aligned((*_figures(row), *details, _flags(row, status)), columns))
    if len(shown) < len(rows):
        lines.append(f"... {len(rows) - len(shown)} more VMs; `tidegate-agent vms` lists all")
    return [printable(line)[:width].rstrip() for line in lines[:height]]


def watch(door: Door, *, interval_s: float, count: int | None, sort: str) -> None:
    """Ask and draw until `count` screens, q or Ctrl-C. An agent that restarts is waited for, unless the first question failed."""
    live = count != 1 and sys.stdin.isatty() and sys.stdout.isatty()
    answer, problem, drawn = door.ask("top"), "", 0
    with _raw_terminal() if live else _plain() as read_key:
        while True:
            # A pipe gets everything: whoever reads it may filter.
            width, height = shutil.get_terminal_size() if sys.stdout.isatty() else (10_000, 1_000_000)
            lines = screen(answer, sort, width, height - (1 if problem else 0))
            _draw([problem, *lines] if problem else lines, clear=live, more=drawn > 0)
            drawn += 1
            if drawn == count:
                return
            key = read_key(interval_s)
            if key in ("q", "Q", "\x03"):
                return
            sort = KEYS.get(key, sort)
            try:
                answer, problem = door.ask("top"), ""
            except Unreachable as error:
                problem = f"{error} (showing the last answer)"[:200]


def _aligned(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    return " ".join(
        cell[:wide].ljust(wide) if i == 0 else cell.rjust(wide) for i, (cell, (_, wide)) in enumerate(zip(cells, columns, strict=True))
    )


def _flags(row: Row, status: Mapping[str, Any]) -> str:
    return "".join(
        letter
        for letter, holds in (
            ("*", bool(row["in_flight"])),
            ("b", bool(row["backing_off_until_ns"])),
            ("x", row["excluded"]),
            ("y", row["yielded_until_ns"] > row["now_ns"]),
            ("Q", row["vm_id"] in status["vms_quarantined"]),
            ("-", not row["running"]),
        )
        if holds
    )


def _figures(row: Row) -> tuple[str, ...]:
    return (
        row["name"] or row["vm_id"],
        _demand(row),
        cores(row.get("cpu_used_millicores")),
        cores(row.get("cpu_quota_millicores")),
        _text(row.get("vcpus")),
        percent(row.get("cpu_ready_permille")),
        percent(row.get("cpu_throttled_permille")),
        "/".join(percent(row.get(f"psi_{what}_some_permille")) for what in ("cpu", "memory", "io")),
        size(row.get("memory_allocated_bytes")),
        size(row.get("memory_used_bytes")),
        size(_sum(row, "disk_read_bytes_per_s", "disk_write_bytes_per_s")),
        bits(_sum(row, "net_rx_bits_per_s", "net_tx_bits_per_s")),
    )


def _details(detail: Row) -> tuple[str, ...]:
    per_kilocycle = detail.get("instructions_per_kilocycle")
    return (
        size(detail.get("memory_current_bytes")),
        _text(_sum(detail, "net_rx_packets_per_s", "net_tx_packets_per_s")),
        _text(_sum(detail, "net_rx_tap_dropped_per_s", "net_tx_tap_dropped_per_s")),
        _text(detail.get("context_switches_per_s")),
        "-" if per_kilocycle is None else f"{per_kilocycle / 1000:.2f}",
    )


def _demand(row: Row) -> str:
    """CPU that the VM asks for: what it used, and had it not been held back, at least in proportion more."""
    used, throttled = row.get("cpu_used_millicores"), row.get("cpu_throttled_permille") or 0
    if used is None or not throttled:
        return cores(used)
    return ">" + cores(used * 1000 // max(1, 1000 - min(throttled, 999)))


def _sum(row: Row, *names: str) -> int | None:
    known = [row[name] for name in names if row.get(name) is not None]
    return sum(known) if known else None


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _draw(lines: Sequence[str], *, clear: bool, more: bool) -> None:
    if clear:
        sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines[:-1]) + lines[-1] + "\x1b[K\x1b[J")
        sys.stdout.flush()
    else:
        click.echo(("\n" if more else "") + "\n".join(lines))


@contextmanager
def _raw_terminal() -> Iterator[Callable[[float], str]]:
    """Keys come at once and unechoed; the screen before is put back at the end."""
    import termios  # noqa: PLC0415  # only a terminal needs it
    import tty  # noqa: PLC0415

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: os.read(descriptor, 1).decode(errors="replace") if select.select([descriptor], [], [], seconds)[0] else ""
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


@contextmanager
def _plain() -> Iterator[Callable[[float], str]]:
    def wait(seconds: float) -> str:
        time.sleep(seconds)
        return ""

    yield wait
