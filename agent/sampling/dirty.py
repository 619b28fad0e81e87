"""Dirty rates of VMs, measured on request: how fast a guest rewrites its memory, which is what a live migration has to outrun.

A measurement costs the guest page faults for a second, so nobody measures without a reason: who plans a migration asks. Requests wait in
a short queue and one thread takes them one after the other, so that no VM is ever measured twice at once and the host is not measured all
over. libvirt is asked for the result without waiting for a busy domain.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, Protocol

import msgspec
import structlog

from shared.clock import Clock
from shared.errors import HostError, Refusal
from shared.units import NS_PER_MS

MEASURE_S: Final = 1  # libvirt takes 1 to 60; a second sees every page that a busy guest touches often
RESULT_DEADLINE_S: Final = 10.0  # then another VM's turn; QEMU finishes by itself
POLL_S: Final = 0.25
MOST_WAITING: Final = 64  # a minute's worth; who plans more migrations than that at once reads older figures
MOST_KEPT: Final = 1024  # results; more VMs run on no host
_log = structlog.get_logger(__name__)


class DirtyRate(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement."""

    bytes_per_s: int
    at_ns: int  # monotonic


class DirtyState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one VM's dirty rate: whether it is being measured or about to be, the newest figure, why the last try gave none."""

    measuring: bool
    bytes_per_s: int | None = None
    age_ms: int | None = None
    failure: str = ""


class DirtyRateSource(Protocol):
    """What measures. Each call may block; raises HostError or Refusal."""

    def start(self, vm_id: str, seconds: int) -> None:
        """Begin a measurement."""
        ...

    def result(self, vm_id: str) -> int | None:
        """Bytes/s of the measurement begun last; None while it runs or the domain is busy."""
        ...


class DirtyRates:
    """Newest dirty rate of each VM. Callable from any thread; `close` ends the worker."""

    def __init__(self, source: DirtyRateSource, clock: Clock, poll_s: float = POLL_S) -> None:
        self._source = source
        self._clock = clock
        self._poll_s = poll_s
        self._condition = threading.Condition()
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._newest: OrderedDict[str, DirtyRate] = OrderedDict()
        self._failures: dict[str, str] = {}  # of VMs whose last measurement gave nothing
        self._running: str | None = None
        self._closed = threading.Event()
        self._bug: Exception | None = None
        self._thread: threading.Thread | None = None

    def request(self, vm_id: str) -> bool:
        """Measure this VM soon. True when it will be (or is being) measured, False when too many wait already."""
        with self._condition:
            if self._closed.is_set():
                return False
            if vm_id == self._running or vm_id in self._waiting:
                return True
            if len(self._waiting) >= MOST_WAITING:
                return False
            self._waiting[vm_id] = None
            self._failures.pop(vm_id, None)
            if self._thread is None:  # most agents never measure: no thread until then
                self._thread = threading.Thread(target=self._run, name="tidegate dirty rates", daemon=True)
                self._thread.start()
            self._condition.notify_all()
            return True

    def newest(self, vm_id: str) -> int | None:
        """Bytes per second of the newest measurement; None = never measured. Raises what the worker died of."""
        if self._bug is not None:
            raise self._bug
        found = self._newest.get(vm_id)
        return None if found is None else found.bytes_per_s

    def age_ns(self, vm_id: str) -> int | None:
        """Nanoseconds since it was measured."""
        found = self._newest.get(vm_id)
        return None if found is None else max(0, self._clock.monotonic_ns() - found.at_ns)

    def state(self, vm_id: str) -> DirtyState:
        """Everything at once, for somebody who asked for a measurement and waits. Raises what the worker died of."""
        with self._condition:
            rate, age_ns = self.newest(vm_id), self.age_ns(vm_id)
            return DirtyState(
                measuring=vm_id == self._running or vm_id in self._waiting,
                bytes_per_s=rate,
                age_ms=None if age_ns is None else age_ns // NS_PER_MS,
                failure=self._failures.get(vm_id, ""),
            )

    def forget(self, vm_id: str) -> None:
        """The VM is gone (or moved away: its rate is measured anew where it runs)."""
        with self._condition:
            self._waiting.pop(vm_id, None)
            self._newest.pop(vm_id, None)
            self._failures.pop(vm_id, None)

    def close(self, seconds: float = 1.0) -> None:
        """End; a call into libvirt that hangs is not waited for longer than `seconds`."""
        with self._condition:
            self._closed.set()
            self._waiting.clear()
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        try:
            while (vm_id := self._turn()) is not None:
                self._work(vm_id)
        except Exception as error:  # noqa: BLE001  # raised by the next `newest`: a worker must not die unseen
            self._bug = error

    def _turn(self) -> str | None:
        """Waits for a request; None when closed."""
        with self._condition:
            self._running = None
            self._condition.wait_for(lambda: self._waiting or self._closed.is_set())
            if self._closed.is_set():
                return None
            self._running, _ = self._waiting.popitem(last=False)
            return self._running

    def _work(self, vm_id: str) -> None:
        try:
            rate = self._measure(vm_id)
        except (HostError, Refusal) as error:
            _log.info("dirty rate could not be measured", vm=vm_id, error=str(error))
            with self._condition:
                self._failures[vm_id] = str(error)
                while len(self._failures) > MOST_KEPT:
                    del self._failures[next(iter(self._failures))]
            return
        with self._condition:
            self._newest[vm_id] = DirtyRate(bytes_per_s=rate, at_ns=self._clock.monotonic_ns())
            self._newest.move_to_end(vm_id)
            while len(self._newest) > MOST_KEPT:
                self._newest.popitem(last=False)

    def _measure(self, vm_id: str) -> int:
        self._source.start(vm_id, MEASURE_S)
        end_ns = self._clock.monotonic_ns() + int((MEASURE_S + RESULT_DEADLINE_S) * 1e9)
        while self._clock.monotonic_ns() < end_ns and not self._closed.wait(self._poll_s):
            rate = self._source.result(vm_id)
            if rate is not None:
                return rate
        raise HostError(f"no result within {MEASURE_S + RESULT_DEADLINE_S:g} s")
