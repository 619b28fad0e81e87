"""What the agent answers on its control socket: one method per command, in plain values that become JSON.

Invariant: a request that names something unknown or out of range is a Refusal with its code; nothing a client sends is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec

from agent import events as ev
from agent.acting.telling import HistoryLine
from agent.sampling.detail import VmDetail
from agent.sampling.dirty import DirtyRates
from agent.service.picture import Picture
from shared.control import Request
from shared.errors import Refusal
from shared.model import Mode
from shared.plan import OutcomeState
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

HISTORY_LINES: Final = 50  # unless told otherwise: two screens
HISTORY_MOST: Final = 1000
UNDO_MOST_S: Final = 7 * 86_400  # further back than steps are remembered on a busy host
OPERATOR: Final = "operator"  # origin of undone steps
UNDO_REASON: Final = "undo of "
ENDED: Final = frozenset(str(state) for state in OutcomeState)

Simulation = Callable[[str], Awaitable[Any]]


class Command(NamedTuple):
    """What runs, how many arguments it takes, and which options."""

    run: Callable[[Request], Any]
    least: int = 0
    most: int = 0
    options: tuple[str, ...] = ()


class Answers:
    """`answer` is the handler of a ControlServer. `handle` gives an event to the core and carries out what it says."""

    def __init__(
        self,
        picture: Picture,
        handle: Callable[[ev.Event], None],
        simulation: Simulation | None = None,
        dirty_rates: DirtyRates | None = None,
    ) -> None:
        """None = this host has no such thing."""
        self._picture, self._handle, self._simulation, self._dirty_rates = picture, handle, simulation, dirty_rates
        self._commands: dict[str, Command] = {
            "status": Command(self._status),
            "mode": Command(self._mode, most=1),
            "vms": Command(self._vms),
            "top": Command(self._top),
            "plan": Command(self._plan),
            "history": Command(self._history, options=("n", "vm")),
            "why": Command(self._why, least=1, most=1),
            "caps": Command(self._caps, least=1, most=1),
            "dirty-rate": Command(self._dirty_rate, least=1, most=1, options=("measure",)),
            "pause": Command(self._pause),
            "resume": Command(self._pause),
            "undo": Command(self._undo, most=1, options=("since_s", "vm", "dry_run")),
            "undone": Command(self._undone, least=1, most=1),
        }

    async def answer(self, request: Request) -> Any:
        """The result of one request. Raises Refusal."""
        if request.command == "simulation" and self._simulation is not None:
            return await self._simulation(request.argument or "")
        command = self._commands.get(request.command)
        if command is None:
            raise Refusal(RefusalCode.INVALID_VALUE, f"command {request.command[:64]!r}: allowed {', '.join(self._commands)}")
        # A word too many may be a meaning that we would miss: `pause web-1` does not mean the whole host.
        given = int(request.argument is not None)
        if not command.least <= given <= command.most:
            raise Refusal(RefusalCode.INVALID_VALUE, f"{request.command} takes {'an' if command.least else 'no'} argument")
        for name in request.options:
            if name not in command.options:
                allowed = ", ".join(command.options) or "none"
                raise Refusal(RefusalCode.INVALID_VALUE, f"{request.command}: option {name[:64]!r}: allowed {allowed}")
        return command.run(request)

    def _status(self, request: Request) -> dict[str, Any]:
        picture, core, spool = self._picture, self._picture.core, self._picture.spool
        status = core.status(picture.clock.wall_ns())
        return {
            "host_id": core.host_id,
            "boot_id": core.boot_id,
            "version": picture.version,
            "hypervisor": picture.config.hypervisor,
            "mode": core.mode,
            "mode_pinned": core.mode_pinned,
            "paused_by": list(status.paused_by),
            "clock_s": picture.clock.wall_ns() / NS_PER_S,
            "coordinator_clock_offset_ms": picture.clock_offset_ms,
            "link_up": core.link_up,
            "vms": len(picture.domains),
            "vms_yielded": status.vms_yielded,
            "vms_quarantined": sorted(picture.calls.stuck),
            "sampling_rounds": picture.rounds,
            "sampling_period_s": picture.period_s,
            "sampling_round_s": picture.round_seconds,
            "sampling_failures": picture.failures,
            "settings_error": picture.settings_error,
            "spool_frames": spool.frames,
            "spool_bytes": spool.bytes_used,
            "spool_dropped_frames": spool.dropped_frames,
            "steps_in_flight": core.in_flight,
            "plan_steps_waiting": core.waiting,
            "outcomes": {f"{state}:{code}" if code else str(state): n for (state, code), n in sorted(core.counters.items())},
        }

    def _mode(self, request: Request) -> dict[str, Any]:
        argument, core = request.argument, self._picture.core
        if argument is not None:
            try:
                pin = None if argument == "unpin" else Mode(argument)
            except ValueError:
                allowed = ", ".join([*Mode, "unpin"])
                raise Refusal(RefusalCode.INVALID_VALUE, f"mode {argument!r}: allowed {allowed}") from None
            self._handle(ev.ModePinned(mode=pin))
        return {"mode": core.mode, "pinned": core.pinned, "ordered": core.ordered, "default": core.default_mode}

    def _pause(self, request: Request) -> dict[str, Any]:
        self._handle(ev.PauseOrdered(paused=request.command == "pause", by="owner"))
        return {"paused_by": list(self._picture.paused_by()), "mode": self._picture.core.mode}

    def _vms(self, request: Request) -> list[dict[str, Any]]:
        sample = self._picture.sample
        domains = {domain.vm_id: domain for domain in self._picture.domains}
        rows, now_ns = [], self._picture.clock.wall_ns()
        for summary in self._picture.core.vms():
            row: dict[str, Any] = msgspec.to_builtins(summary)
            if sample is not None and summary.vm_id in sample.vms:
                row |= msgspec.to_builtins(sample.vms[summary.vm_id])
            domain = domains.get(summary.vm_id)
            row["now_ns"] = now_ns
            row["capabilities"] = msgspec.to_builtins(domain.capabilities) if domain else {}
            rows.append(row)
        return rows

    def _top(self, request: Request) -> dict[str, Any]:
        """Host and VMs of the newest sample, in one answer: a screen must not mix two."""
        sample = self._picture.sample
        host = msgspec.to_builtins(sample) if sample is not None else {}
        host.pop("vms", None)
        details = self._picture.details()
        rows = self._vms(request)
        for row in rows:
            row["detail"] = msgspec.to_builtins(details.get(row["vm_id"], VmDetail()))
        return {
            "status": self._status(request),
            "host": host,
            "capacity": msgspec.to_builtins(self._picture.core.capacity),
            "vms": rows,
        }

    def _plan(self, request: Request) -> dict[str, Any]:
        summary = self._picture.core.plan(self._picture.clock.wall_ns())
        names = {domain.vm_id: domain.name for domain in self._picture.domains}
        answer: dict[str, Any] = msgspec.to_builtins(summary)
        for line in answer["steps"]:
            line["name"] = names.get(line["step"]["vm_id"], "")
        return answer | {"now_ns": self._picture.clock.wall_ns()}

    def _history(self, request: Request) -> dict[str, Any]:
        lines = _number("n", request.options.get("n", str(HISTORY_LINES)), 1, HISTORY_MOST)
        only = request.options.get("vm")
        vm_id = self._picture.vm_id(only) if only is not None else None
        found = [line for line in self._picture.core.history(HISTORY_MOST) if vm_id in (None, line.vm_id)]
        return {"history": [_told(line) for line in found[-lines:]]}

    def _why(self, request: Request) -> dict[str, Any]:
        vm_id = self._picture.vm_id(request.argument or "")
        return {"vm_id": vm_id, "mode": self._picture.core.mode, "story": msgspec.to_builtins(self._picture.core.why(vm_id) or ())}

    def _undo(self, request: Request) -> dict[str, Any]:
        """Begin to take steps back; `undone` tells how it went. Every lever that the order means is named at once, with what forbids it."""
        order = self._order(request)
        core, now_ns = self._picture.core, self._picture.clock.wall_ns()
        levers = core.undoable(step_id=order.step_id, since_ns=order.since_ns, vm_id=order.vm_id)
        if not levers:
            raise Refusal(RefusalCode.NOTHING_TO_UNDO)
        dry = _flag(request, "dry_run")
        if not dry and (holders := self._picture.paused_by()):
            raise Refusal(RefusalCode.PAUSED, f"paused by {', '.join(holders)}: resume first")
        if not dry and not core.mode.acts:
            raise Refusal(RefusalCode.MODE_FORBIDS, f"mode {core.mode} changes nothing; `tidegate-agent mode reactive` first")
        if not dry:
            self._handle(order)
        names = {domain.vm_id: domain.name for domain in self._picture.domains}
        rows = [{**msgspec.to_builtins(lever), "name": names.get(lever.vm_id, "")} for lever in levers]
        return {"dry_run": dry, "since_ns": now_ns, "levers": rows}

    def _order(self, request: Request) -> ev.UndoOrdered:
        step_id, since, vm = request.argument, request.options.get("since_s"), request.options.get("vm")
        if (step_id is None) == (since is None):
            raise Refusal(RefusalCode.INVALID_VALUE, "undo takes a step or a time (--since), one of them")
        since_ns = None
        if since is not None:
            since_ns = self._picture.clock.wall_ns() - _number("since_s", since, 1, UNDO_MOST_S) * NS_PER_S
        return ev.UndoOrdered(step_id=step_id or "", since_ns=since_ns, vm_id=self._picture.vm_id(vm) if vm is not None else "")

    def _undone(self, request: Request) -> dict[str, Any]:
        """What has ended of an undo begun at a time, and whether some of it is still on its way."""
        since_ns = _number("since_ns", request.argument or "", 0, 2**63 - 1)
        core = self._picture.core
        ended = [
            _told(line)
            for line in core.history(HISTORY_MOST)
            if line.decision.origin == OPERATOR and line.decision.at_ns >= since_ns and line.decision.verdict in ENDED
        ]
        waiting = [line for line in core.plan(self._picture.clock.wall_ns()).steps if line.step.reason.startswith(UNDO_REASON)]
        return {"ended": ended, "open": len(waiting)}

    def _dirty_rate(self, request: Request) -> dict[str, Any]:
        """What is known of the VM's dirty rate; with `measure` it is measured soon, and `measuring` says until when."""
        vm_id = self._picture.vm_id(request.argument or "")
        domain = next(domain for domain in self._picture.domains if domain.vm_id == vm_id)
        rates = self._dirty_rates
        if rates is None:
            raise Refusal(RefusalCode.NOT_CAPABLE, f"hypervisor {self._picture.config.hypervisor} measures no dirty rates")
        if _flag(request, "measure"):
            if not domain.running:
                raise Refusal(RefusalCode.VM_NOT_RUNNING, f"{domain.name} is not running")
            if not rates.request(vm_id):
                raise Refusal(RefusalCode.RATE_LIMITED, "too many measurements wait already")
        return {"vm_id": vm_id, "name": domain.name, **msgspec.to_builtins(rates.state(vm_id))}

    def _caps(self, request: Request) -> dict[str, Any]:
        vm_id = self._picture.vm_id(request.argument or "")
        domain = next(domain for domain in self._picture.domains if domain.vm_id == vm_id)
        reasons = msgspec.to_builtins(domain.capabilities)
        return {
            "vm_id": vm_id,
            "name": domain.name,
            "policy": msgspec.to_builtins(domain.policy),
            "capabilities": {name: {"able": reason is None, "reason": reason or ""} for name, reason in reasons.items()},
        }


def _flag(request: Request, name: str) -> bool:
    text = request.options.get(name, "false")
    if text not in ("true", "false"):
        raise Refusal(RefusalCode.INVALID_VALUE, f"{name} {text[:64]!r}: allowed true, false")
    return text == "true"


def _told(line: HistoryLine) -> dict[str, Any]:
    return {"vm_id": line.vm_id, "name": line.name, **msgspec.to_builtins(line.decision)}


def _number(name: str, text: str, least: int, most: int) -> int:
    # isdigit alone takes other scripts' digits, and int() a million of them
    if not (len(text) <= 19 and text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise Refusal(RefusalCode.INVALID_VALUE, f"{name} {text[:64]!r}: allowed {least} to {most}")
    return int(text)
