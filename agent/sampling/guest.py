"""Processes that a guest's kernel killed for want of memory: `oom_kill` of the guest's /proc/vmstat, read through its guest agent.

Nothing on the host shows a guest's OOM kill, and it is the one proof that a VM was cut too far. An agent may be absent, blocked or hung,
so it is asked beside sampling: on one thread, one VM after the other, read-only, each at most once a period. One that fails is asked
more rarely (doubling up to an hour) and delays the others by no more than its timeout. A VM under memory pressure is asked sooner
(`hurry`), and that is when agents are slow: so a single failure does not make the counter unknown, or the rise after it would be lost.

The figure is foreign input: a whole number of a sane size, or unknown. It starts anew with the guest's kernel.
Source: mm/oom_kill.c (count_vm_event(OOM_KILL)), Linux 4.13 and later.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec
import structlog

from agent.ports import RawVm
from shared.clock import Clock
from shared.errors import HostError, Refusal
from shared.units import NS_PER_S

VMSTAT: Final = "/proc/vmstat"
LONGEST_PAUSE_NS: Final = 3600 * NS_PER_S
HURRY_NS: Final = 5 * NS_PER_S  # a VM under pressure is asked this often: the guard wants it within two samples
LOST_AFTER: Final = 3  # failures in a row; with 60 s between probes and doubling that is 7 minutes
MOST_VMS: Final = 4096  # more run on no host; bounds what is kept
_OOM_KILL: Final = re.compile(rb"^oom_kill (\d{1,15})$", re.MULTILINE)  # 15 digits fit into a Count
_log = structlog.get_logger(__name__)


class GuestAgent(Protocol):
    """Reading files in a guest. Blocks for no longer than its own timeout."""

    def read_file(self, vm_id: str, path: str) -> bytes:
        """The file's beginning (32 KiB at most). Raises HostError or Refusal with the reason."""
        ...


def parse_oom_kills(vmstat: bytes) -> int | None:
    """The counter in a /proc/vmstat; None where this kernel has none."""
    match = _OOM_KILL.search(vmstat)
    return None if match is None else int(match[1])


def short_of_memory(before: RawVm | None, now: RawVm) -> bool:
    """Whether the guest may be about to kill: less than a sixteenth of its memory is to be had, or it swaps."""
    if (
        now.memory_usable_bytes is not None
        and now.memory_actual_bytes is not None
        and now.memory_usable_bytes * 16 < now.memory_actual_bytes
    ):
        return True
    swapped = None if before is None or before.epoch != now.epoch else before.swap_bytes_total
    return swapped is not None and now.swap_bytes_total is not None and now.swap_bytes_total > swapped


class _Turn(msgspec.Struct):
    due_ns: int
    asked_ns: int | None = None
    failures: int = 0
    hurried: bool = False


class ProbeSchedule:
    """Whose turn it is. Without clock or threads; every time is monotonic nanoseconds and comes in."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._turns: dict[str, _Turn] = {}

    def follow(self, vm_ids: Iterable[str], now_ns: int) -> None:
        """These VMs run now: new ones are due at once, others than these are forgotten."""
        wanted = dict.fromkeys(list(vm_ids)[:MOST_VMS])
        self._turns = {vm_id: self._turns.get(vm_id) or _Turn(due_ns=now_ns) for vm_id in wanted}

    def hurry(self, vm_id: str, now_ns: int) -> bool:
        """Bring this VM forward; whether its turn is sooner now. A failing agent is brought forward ever less: 10, 20, 40 s ..."""
        turn = self._turns.get(vm_id)
        if turn is None:
            return False
        soonest = now_ns if turn.asked_ns is None else max(now_ns, turn.asked_ns + _doubled(HURRY_NS, turn.failures))
        sooner = soonest < turn.due_ns or not turn.hurried
        turn.due_ns, turn.hurried = min(turn.due_ns, soonest), True
        return sooner

    def next(self, now_ns: int) -> tuple[str | None, int]:
        """(VM to ask now, 0), or (None, nanoseconds until one is due). Hurried ones first, then who is due longest."""
        due = [(not turn.hurried, turn.due_ns, vm_id) for vm_id, turn in self._turns.items() if turn.due_ns <= now_ns]
        if due:
            return min(due)[2], 0
        return None, min((turn.due_ns - now_ns for turn in self._turns.values()), default=LONGEST_PAUSE_NS)

    def done(self, vm_id: str, now_ns: int, *, failed: bool) -> int:
        """The VM was asked; returns its failures in a row."""
        turn = self._turns.get(vm_id)
        if turn is None:
            return 0
        turn.failures = turn.failures + 1 if failed else 0
        turn.asked_ns, turn.hurried = now_ns, False
        turn.due_ns = now_ns + _doubled(self._period_ns, turn.failures)
        return turn.failures


class GuestProbe:
    """Newest counter of each VM. Callable from any thread; `close` ends the worker."""

    def __init__(self, agent: GuestAgent, clock: Clock, period_s: int) -> None:
        """`period_s` >= 1: who wants none makes none."""
        self._agent = agent
        self._clock = clock
        self._schedule = ProbeSchedule(period_s * NS_PER_S)
        self._condition = threading.Condition()
        self._newest: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._closed = False
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tidegate guest probe", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def follow(self, vm_ids: Iterable[str]) -> None:
        """The VMs that run now."""
        here = set(vm_ids)
        with self._condition:
            self._schedule.follow(sorted(here), self._clock.monotonic_ns())
            for kept in (self._newest, self._reasons):
                for vm_id in kept.keys() - here:
                    del kept[vm_id]
            self._condition.notify_all()

    def newest(self, vm_id: str) -> int | None:
        """Processes killed since the guest's boot, as last read; None = unknown. Raises what the worker died of."""
        if self._bug is not None:
            raise self._bug
        return self._newest.get(vm_id)

    def hurry(self, vm_id: str) -> None:
        """This VM is short of memory: ask it soon."""
        with self._condition:
            if self._schedule.hurry(vm_id, self._clock.monotonic_ns()):
                self._condition.notify_all()

    def obstacle(self, vm_id: str) -> str | None:
        """Why this guest does not answer; None = it does, or was not asked yet."""
        return self._reasons.get(vm_id)

    def close(self, seconds: float = 1.0) -> None:
        """End; an agent that hangs is not waited for longer than `seconds`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while (vm_id := self._turn()) is not None:
                self._ask(vm_id)
        except Exception as error:  # noqa: BLE001  # raised by the next `newest`: a worker must not die unseen
            self._bug = error

    def _turn(self) -> str | None:
        """Waits for a VM to be due; None when closed."""
        with self._condition:
            while not self._closed:
                vm_id, wait_ns = self._schedule.next(self._clock.monotonic_ns())
                if vm_id is not None:
                    return vm_id
                self._condition.wait(wait_ns / NS_PER_S)
            return None

    def _ask(self, vm_id: str) -> None:
        count, reason = None, ""
        try:
            count = parse_oom_kills(self._agent.read_file(vm_id, VMSTAT))
            if count is None:
                reason = "the guest's kernel does not count killed processes"
        except (HostError, Refusal) as error:
            reason = str(error)[:256]
        with self._condition:
            failures = self._schedule.done(vm_id, self._clock.monotonic_ns(), failed=count is None)
            if count is not None:
                if count > self._newest.get(vm_id, count):
                    _log.warning("guest killed processes for want of memory", vm=vm_id, killed=count - self._newest[vm_id])
                self._newest[vm_id] = count
                self._reasons.pop(vm_id, None)
                return
            if failures == 1:
                _log.info("guest agent does not answer", vm=vm_id, reason=reason)
            self._reasons[vm_id] = reason
            if failures >= LOST_AFTER:
                self._newest.pop(vm_id, None)


def _doubled(first_ns: int, failures: int) -> int:
    return min(LONGEST_PAUSE_NS, first_ns << min(failures, 20))  # 2^20 periods of a second are 12 days: past every pause
