"""What the demo shows: a live table while it runs and the scoreboard at its end, from the hosts' ground truth and the API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from coordinator.demo import (
    START_S,
    DemoOptions,
    Fleet,
    ProcessEnded,
    agent_settings,
    coordinator_settings,
    free_port,
    host_name,
)
from coordinator.pki import create_ca, issue_coordinator, issue_host
from shared.errors import HostError, Refusal
from shared.model import Mode

WARM_UP_S: Final = 1800.0  # simulated seconds before scoring: both modes leave the initial allocations behind
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a closed terminal must not leave the fleet behind either
EXIT_NO_LIBVIRT: Final = 69  # EX_UNAVAILABLE of sysexits.h
REFRESH_S: Final = 2.0
APPLIED: Final = ("verified", "partial")


@dataclass
class Board:
    """Ground truth and outcomes of all hosts since scoring began."""

    truths: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    first: dict[str, dict[str, int]] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    fleet: dict[str, Any] = field(default_factory=dict)

    def mode(self, mode: str) -> dict[str, Any]:
        """One mode's row of the scoreboard."""
        hosts = [h for h, status in self.statuses.items() if status["mode"] == mode and h in self.truths]
        totals = [self.truths[h]["total"] for h in hosts]
        ratio = {r: _ratio(totals, r) for r in (totals[0]["used"] if totals else ())}
        main = [value for r in ("cpu_millicores", "memory_bytes") if (value := ratio.get(r)) is not None]
        score = next((s for s in self.scores if s["mode"] == mode), {})
        return {
            "hosts": len(hosts),
            "violation_minutes": sum(t["violation_any_s"] for t in totals) / 60,
            "violation_minutes_by_resource": {r: sum(t["violation_s"][r] for t in totals) / 60 for r in ratio},
            "allocation_over_use": sum(main) / len(main) if main else None,
            "allocation_over_use_by_resource": ratio,
            "out_of_memory_kills": sum(t["ooms"] for t in totals),
            "vm_hours": sum(t["observed_s"] for t in totals) / 3600,
            "steps": sum(self._count(h, lambda state: state.split(":")[0] in APPLIED) for h in hosts),
            "refusals": sum(self._count(h, lambda state: state.startswith("refused")) for h in hosts),
            "forecast_pinball": score.get("pinball"),
            "naive_pinball": score.get("naive_pinball"),
            "forecast_pinball_vs_naive": _over(score.get("pinball"), score.get("naive_pinball")),
        }

    def _count(self, host: str, wanted: Any) -> int:
        before = self.first.get(host, {})
        return sum(n - before.get(state, 0) for state, n in self.statuses[host]["outcomes"].items() if wanted(state))

    def table(self, title: str) -> Table:
        """Both modes side by side."""
        table = Table(title=title)
        table.add_column("")
        rows = {mode: self.mode(mode) for mode in (Mode.REACTIVE, Mode.PREDICTIVE)}
        for mode in rows:
            table.add_column(mode, justify="right")
        for label, key, digits in (
            ("VM-minutes in violation", "violation_minutes", 1),
            ("allocation / use (CPU, memory)", "allocation_over_use", 3),
            ("steps applied", "steps", 0),
            ("steps refused", "refusals", 0),
            ("forecast pinball / Naive", "forecast_pinball_vs_naive", 3),
            ("out-of-memory kills", "out_of_memory_kills", 0),
        ):
            table.add_row(label, *(_text(row[key], digits) for row in rows.values()))
        return table


async def run_demo(options: DemoOptions) -> int:
    """Run to the end of the scored hours (0), a failure (1) or Ctrl-C (130). Leaves nothing behind."""
    console = Console(stderr=False)
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with Fleet(options) as fleet:
        try:
            return await _run(fleet, console, stop)
        except HostError as error:
            _print_failure(console, error)
            return 1


async def _run(fleet: Fleet, console: Console, stop: asyncio.Event) -> int:
    options, board = fleet.options, Board()
    source = await asyncio.to_thread(fleet.prepare)
    half = (options.hosts + 1) // 2
    console.print(f"{options.hosts} hosts x {options.vms} VMs, {half} reactive, {options.hosts - half} predictive; demand: {source}")
    fleet.start("coordinator")
    console.print(f"status page: [bold]{fleet.url}[/] (coordinator starting)")
    if not await _while_waiting(fleet.until_ready(), stop):
        return 130
    for host_id in fleet.host_ids:
        fleet.start(host_id)
    console.print(f"running at {options.speed:g}x real time; scores begin after {WARM_UP_S / 60:g} simulated minutes")
    ended = await _watch(fleet, board, console, stop)
    console.print(board.table(f"Scoreboard after {_scored_hours(board):.2f} simulated hours"))
    if options.json_path is not None:
        options.json_path.write_bytes(msgspec.json.format(msgspec.json.encode(_document(fleet, board, source)), indent=2) + b"\n")
        console.print(f"written: {options.json_path}")
    if ended and options.linger:
        console.print(f"status page stays up at {fleet.url} until Ctrl-C")
        await stop.wait()
    return 0 if ended else 130


async def _watch(fleet: Fleet, board: Board, console: Console, stop: asyncio.Event) -> bool:
    """Poll until the scored hours are over (True) or Ctrl-C (False)."""
    scoring_s: float | None = None
    printed = 0.0
    with Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else contextlib.nullcontext() as live:
        while not stop.is_set():
            fleet.check()
            await _poll(fleet, board)
            now_s = board.fleet.get("now_s", START_S)
            if scoring_s is None and now_s - START_S >= WARM_UP_S and len(board.statuses) == len(fleet.host_ids):
                await _reset(fleet, board)
                scoring_s = now_s
            if scoring_s is not None and now_s - scoring_s >= fleet.options.hours * 3600:
                return True
            done = 0.0 if scoring_s is None else (now_s - scoring_s) / 3600
            title = (
                f"{time.strftime('%a %H:%M', time.gmtime(now_s))} simulated, {done:.2f} of {fleet.options.hours:g} h scored, {fleet.url}"
            )
            if live is not None:
                live.update(board.table(title))
            elif time.monotonic() - printed > 15:
                printed = time.monotonic()
                print(title, flush=True)  # noqa: T201  # a log line where there is no terminal
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), REFRESH_S)
    return False


async def _poll(fleet: Fleet, board: Board) -> None:
    def read() -> None:
        for host_id in fleet.host_ids:
            with contextlib.suppress(HostError, Refusal):  # an agent that is still starting
                board.statuses[host_id] = fleet.ask(host_id, "status")
                board.truths[host_id] = fleet.ask(host_id, "simulation", "truth")
        with contextlib.suppress(OSError):
            board.fleet = fleet.get("api/v1/fleet")
            board.scores = fleet.get("api/v1/scores")["modes"]

    await asyncio.to_thread(read)


async def _reset(fleet: Fleet, board: Board) -> None:
    for host_id in fleet.host_ids:
        await asyncio.to_thread(fleet.ask, host_id, "simulation", "reset")
        board.first[host_id] = dict(board.statuses[host_id]["outcomes"])
    board.truths.clear()


async def _while_waiting(work: Any, stop: asyncio.Event) -> bool:
    """False when Ctrl-C came first."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if tasks[0] in done:
        tasks[0].result()
        return True
    return False


async def run_libvirt_demo(options: DemoOptions, mode: str) -> int:
    """Coordinator and one agent on this machine's own libvirt domains, in real time, until Ctrl-C."""
    console, stop = Console(), asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with Fleet(options) as fleet:
        ports, host_id = (free_port(), options.port or free_port()), host_name()
        pki, home = fleet.folder / "pki", fleet.folder / host_id
        create_ca(pki)
        fleet.url = f"http://127.0.0.1:{ports[1]}/"
        fleet.configure("coordinator", coordinator_settings(fleet.folder, issue_coordinator(pki, ["localhost"], ["127.0.0.1"]), *ports))
        home.mkdir()
        fleet.configure(host_id, agent_settings(home, host_id, issue_host(pki, host_id), ports[0], Mode(mode)))
        fleet.host_ids.append(host_id)
        try:
            fleet.start(host_id)  # first: where there is no libvirt, it says so at once
            if not await _while_waiting(fleet.until_agent(host_id), stop):
                return 130
            if why := fleet.ask(host_id, "status")["sampling_failures"].get("libvirt"):
                _print_failure(console, HostError(f"no libvirt to talk to: {why}"))
                return EXIT_NO_LIBVIRT
            fleet.start("coordinator")
            console.print(
                f"status page: [bold]{fleet.url}[/]; mode {mode}: "
                + ("nothing is changed" if mode == "observe" else "VMs will be reshaped")
            )
            if not await _while_waiting(fleet.until_ready(), stop):
                return 130
            while not stop.is_set():
                fleet.check()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), REFRESH_S)
        except HostError as error:
            _print_failure(console, error)
            return error.code if isinstance(error, ProcessEnded) and error.code > 0 else 1
    return 0


def _print_failure(console: Console, error: HostError) -> None:
    console.print("[bold red]demo failed:[/]", end=" ")
    console.print(str(error), markup=False, highlight=False)  # a log line may hold brackets


def _document(fleet: Fleet, board: Board, source: str) -> dict[str, Any]:
    options = fleet.options
    return {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "demand": "traces" if source[0] == "/" else "generated",
        "hours": _scored_hours(board),
        "speed": options.speed,
        "hosts": options.hosts,
        "vms_per_host": options.vms,
        "seed": options.seed,
        "modes": {mode: board.mode(mode) for mode in (Mode.REACTIVE, Mode.PREDICTIVE)},
    }


def _scored_hours(board: Board) -> float:
    spans = [truth["until_ns"] - truth["since_ns"] for truth in board.truths.values()]
    return max(spans, default=0) / 3.6e12


def _ratio(totals: list[Mapping[str, Any]], resource: str) -> float | None:
    used = sum(t["used"][resource] for t in totals)
    return sum(t["allocated"][resource] for t in totals) / used if used else None


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
