"""What the agent answers on its control socket: one method per command, in plain values that become JSON.

Invariant: a request that names something unknown or out of range is a Refusal with its code; nothing a client sends is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from agent import events as ev
from agent.picture import Picture
from shared.control import Request
from shared.errors import Refusal
from shared.model import Mode
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

HISTORY_LINES: Final = 50  # unless told otherwise: two screens
HISTORY_MOST: Final = 1000

Simulation = Callable[[str], Awaitable[Any]]


class Answers:
    """`answer` is the handler of a ControlServer. `handle` gives an event to the core and carries out what it says."""

    def __init__(self, picture: Picture, handle: Callable[[ev.Event], None], simulation: Simulation | None = None) -> None:
        self._picture, self._handle, self._simulation = picture, handle, simulation
        self._commands: dict[str, Callable[[Request], Any]] = {
            "status": self._status,
            "mode": self._mode,
            "vms": self._vms,
            "top": self._top,
            "plan": self._plan,
            "history": self._history,
            "why": self._why,
            "caps": self._caps,
            "pause": self._pause,
            "resume": self._pause,
        }

    async def answer(self, request: Request) -> Any:
        """The result of one request. Raises Refusal."""
        if request.command == "simulation" and self._simulation is not None:
            return await self._simulation(request.argument or "")
        try:
            command = self._commands[request.command]
        except KeyError:
            raise Refusal(RefusalCode.INVALID_VALUE, f"command {request.command!r}: allowed {', '.join(self._commands)}") from None
        return command(request)

    def _status(self, request: Request) -> dict[str, Any]:
        picture, core, spool = self._picture, self._picture.core, self._picture.spool
        return {
            "host_id": core.host_id,
            "boot_id": core.boot_id,
            "version": picture.version,
            "hypervisor": picture.config.hypervisor,
            "mode": core.mode,
            "mode_pinned": core.mode_pinned,
            "paused_by": list(picture.paused_by()),
            "clock_s": picture.clock.wall_ns() / NS_PER_S,
            "coordinator_clock_offset_ms": picture.clock_offset_ms,
            "link_up": core.link_up,
            "vms": len(picture.domains),
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
        rows = []
        for summary in self._picture.core.vms():
            row: dict[str, Any] = msgspec.to_builtins(summary)
            if sample is not None and summary.vm_id in sample.vms:
                row |= msgspec.to_builtins(sample.vms[summary.vm_id])
            domain = domains.get(summary.vm_id)
            row["capabilities"] = msgspec.to_builtins(domain.capabilities) if domain else {}
            rows.append(row)
        return rows

    def _top(self, request: Request) -> dict[str, Any]:
        """Host and VMs of the newest sample, in one answer: a screen must not mix two."""
        sample = self._picture.sample
        host = msgspec.to_builtins(sample) if sample is not None else {}
        host.pop("vms", None)
        return {
            "status": self._status(request),
            "host": host,
            "capacity": msgspec.to_builtins(self._picture.core.capacity),
            "vms": self._vms(request),
        }

    def _plan(self, request: Request) -> dict[str, Any]:
        summary = self._picture.core.plan(self._picture.clock.wall_ns())
        names = {domain.vm_id: domain.name for domain in self._picture.domains}
        answer: dict[str, Any] = msgspec.to_builtins(summary)
        for line in answer["steps"]:
            line["name"] = names.get(line["step"]["vm_id"], "")
        return answer | {"now_ns": self._picture.clock.wall_ns()}

    def _history(self, request: Request) -> dict[str, Any]:
        lines = _count(request.options.get("n"), HISTORY_LINES, HISTORY_MOST)
        only = request.options.get("vm")
        core, names = self._picture.core, {domain.vm_id: domain.name for domain in self._picture.domains}
        wanted = [self._picture.vm_id(only)] if only else list(names)
        stories = [(vm_id, decision) for vm_id in wanted for decision in core.why(vm_id) or ()]
        newest = sorted(stories, key=lambda entry: entry[1].at_ns)[-lines:]
        return {"history": [{"vm_id": vm_id, "name": names[vm_id], **msgspec.to_builtins(decision)} for vm_id, decision in newest]}

    def _why(self, request: Request) -> dict[str, Any]:
        vm_id = self._picture.vm_id(request.argument or "")
        return {"vm_id": vm_id, "mode": self._picture.core.mode, "story": msgspec.to_builtins(self._picture.core.why(vm_id) or ())}

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


def _count(text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not (len(text) <= 9 and text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise Refusal(RefusalCode.INVALID_VALUE, f"n {text!r}: allowed 1 to {most}")
    return int(text)
