"""TrafficShaper over rtnetlink: HTB for what a guest receives on its tap, and for what guests send in one tree on an IFB of ours.

Towards the guest (NET_RX) nothing is shared on a tap, so one class with rate = ceil = limit sits on the tap's own root:

    tap  root htb 7a10: → class 7a10:10 → fq_codel, or pfifo where the kernel has none

What guests send (NET_TX, NET_TX_RATE) is in agent/adapters/shaping_tree.py.

Invariant: only what carries our handle, our filter priority or our IFB's name is changed or removed. A root qdisc that somebody gave a
handle, or an ingress with other filters, is theirs: Refusal(FOREIGN_SHAPING). State is read from the kernel each time, so a
restart loses nothing; what a kill left half-made is completed by the next change or removed by `sweep`.

All netlink runs in one thread, which has entered the taps' network namespace.
Source: tc-htb(8), tc-mirred(8).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from agent.adapters.shaping_netlink import (
    FILTER_PRIORITY,
    INGRESS_HANDLE,
    INGRESS_PARENT,
    ROOT_PARENT,
    HtbClass,
    TrafficControl,
    enter_network_namespace,
)
from agent.adapters.shaping_rates import CLASS_HANDLE, LEAST_BITS_PER_S, ROOT_HANDLE, alone
from agent.adapters.shaping_tree import SHARED_IFB, Assignment, Leaves, Sending, SendingTree, index_of, sending_of
from agent.sampling.sampler import ShapingReading
from shared import failpoint
from shared.errors import HostError, Refusal
from shared.model import Priority
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import UNLIMITED

_DIRECTIONS: Final = (StepKind.NET_RX, StepKind.NET_TX)
_T = TypeVar("_T")


class NetlinkShaper:
    """TrafficShaper and ShapingSource for the taps of one network namespace."""

    def __init__(self, network_namespace: str = "", uplink_bits_per_s: int = 10_000_000_000) -> None:
        """`network_namespace`: path of the namespace that holds the taps; empty = our own. `uplink_bits_per_s`: what all guests may send.

        Raises HostError when the namespace cannot be entered.
        """
        self._namespace = network_namespace
        self._uplink = uplink_bits_per_s // 8
        self._owners: dict[str, Assignment] = {}
        self._set_here: set[tuple[str, StepKind]] = set()  # what this process has put in force: `missing` looks for it
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tidegate netlink")
        try:
            self._run(self._open)
        except HostError:
            self._thread.shutdown()
            raise

    def close(self) -> None:
        """Close the sockets; what is shaped stays shaped."""
        self._run(self._close)
        self._thread.shutdown()

    def set_ceiling(self, tap: str, kind: StepKind, bits_per_s: int) -> None:
        """Create or change our class in place; UNLIMITED removes the limit. Below LEAST_BITS_PER_S: Refusal(INVALID_VALUE).

        Values are kept as whole bytes per second: 1,000,001 bits/s reads back as 1,000,000.
        """
        if bits_per_s != UNLIMITED and bits_per_s < LEAST_BITS_PER_S:
            raise _too_small(kind, bits_per_s, UNLIMITED)
        if kind is StepKind.NET_RX:
            self._run(lambda: self._set_receiving(tap, bits_per_s))
        else:
            self._run(lambda: self._set_sending(tap, lambda now: msgspec.structs.replace(now, ceiling=bits_per_s)))

    def ceiling(self, tap: str, kind: StepKind) -> int:
        """Ceiling in force, read from the kernel; UNLIMITED where there is none of ours."""
        reading = self._run(lambda: self._reading(tap, kind))
        return UNLIMITED if reading is None else reading.ceiling_bits_per_s

    def set_rate(self, tap: str, bits_per_s: int) -> None:
        """Guarantee what the guest sends `bits_per_s` where the uplink is full; 0 = no guarantee.

        Raises Refusal: INVALID_VALUE below LEAST_BITS_PER_S, HOST_COMMIT_LIMIT when all guarantees together would pass the uplink,
        FOREIGN_SHAPING.
        """
        if bits_per_s and bits_per_s < LEAST_BITS_PER_S:
            raise _too_small(StepKind.NET_TX_RATE, bits_per_s, 0)
        self._run(lambda: self._set_sending(tap, lambda now: msgspec.structs.replace(now, guarantee=bits_per_s)))

    def rate(self, tap: str) -> int:
        """Guarantee in force, read from the kernel; 0 where there is none."""
        found = self._run(lambda: self._tree.find(tap))
        return 0 if found is None else sending_of(found).guarantee

    def assign(self, tap: str, client: str, priority: Priority) -> None:
        """Whose tap it is and who goes first when the uplink is full. Limits nothing by itself; kept for a tap that is not shaped yet."""
        owner = Assignment(client=client, priority=priority)
        if self._owners.get(tap) != owner:
            self._run(lambda: self._assign(tap, owner))

    def dropped_total(self, tap: str, kind: StepKind) -> int | None:
        """Drops plus overlimits of our class; None where there is none."""
        reading = self._run(lambda: self._reading(tap, kind))
        return None if reading is None else reading.dropped_total

    def foreign(self, tap: str, kind: StepKind) -> str | None:
        """What somebody else has put in this direction of the tap; None when the way is free or ours. Raises HostError without a tap."""
        return self._run(lambda: self._foreign(self._index(tap), kind))

    def missing(self) -> tuple[tuple[str, StepKind], ...]:
        """(tap, direction) that this process has shaped and the kernel no longer shows: deleted by somebody, or the tap is a new one."""
        return self._run(self._missing)

    def release(self, tap: str) -> None:
        """Remove everything of ours from this interface, also when the tap itself is gone."""
        self._owners.pop(tap, None)
        for kind in _DIRECTIONS:
            self._run(lambda kind=kind: self._remove(tap, kind))  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    def sweep(self) -> tuple[str, ...]:
        """Remove what is left of taps that are gone (a VM stopped or migrated away) or of a killed change. Returns the classes."""
        return self._run(self._sweep)

    def readings(self) -> Mapping[tuple[str, StepKind], ShapingReading]:
        """Every class of ours by (tap, direction): one dump of the shared tree, and one question for each interface, asked together."""
        return self._run(self._readings)

    # Everything below runs in the netlink thread.

    def _open(self) -> None:
        if self._namespace:
            enter_network_namespace(self._namespace)
        self._control = TrafficControl()
        self._leaves = Leaves(self._control)
        self._tree = SendingTree(self._control, self._leaves, self._uplink)

    def _close(self) -> None:
        self._control.close()

    def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return self._thread.submit(work).result()
        except OSError as error:
            raise HostError(f"network namespace {self._namespace or 'of the agent'}: {error}") from error

    def _set_receiving(self, tap: str, bits_per_s: int) -> None:
        if bits_per_s == UNLIMITED:
            self._remove(tap, StepKind.NET_RX)
            return
        index = self._free(tap, StepKind.NET_RX)
        setting = alone(bits_per_s)
        known = self._control.class_at([index], CLASS_HANDLE)[0]
        if known is None and self._control.qdisc(index, ROOT_PARENT) != ("htb", ROOT_HANDLE):
            self._control.add_root(index, ROOT_HANDLE, CLASS_HANDLE & 0xFFFF)
            failpoint.hit("shaper.between")
        self._control.set_class(index, CLASS_HANDLE, ROOT_HANDLE, setting, create=known is None)
        failpoint.hit("shaper.between")
        if known is None or not known.leaf:
            self._leaves.add(index, CLASS_HANDLE, setting.rate)
        self._set_here.add((tap, StepKind.NET_RX))

    def _set_sending(self, tap: str, change: Callable[[Sending], Sending]) -> None:
        index = index_of(tap)
        if index is None and change(Sending()) == Sending():
            self._remove(tap, StepKind.NET_TX)  # a tap that is gone is free already
            return
        if self._tree.put(tap, self._free(tap, StepKind.NET_TX), change, self._owners.get(tap)):
            self._set_here.add((tap, StepKind.NET_TX))
        else:
            self._set_here.discard((tap, StepKind.NET_TX))

    def _assign(self, tap: str, owner: Assignment) -> None:
        index = index_of(tap)
        if index is not None and self._foreign(index, StepKind.NET_TX) is None:
            self._tree.assign(tap, index, owner)
        self._owners[tap] = owner

    def _remove(self, tap: str, kind: StepKind) -> None:
        index = index_of(tap)
        if kind is StepKind.NET_TX:
            self._tree.remove(tap, index)
        elif index is not None and self._control.qdisc(index, ROOT_PARENT) == ("htb", ROOT_HANDLE):
            self._control.delete_qdisc(index, ROOT_HANDLE, ROOT_PARENT)
        self._set_here.discard((tap, kind))

    def _sweep(self) -> tuple[str, ...]:
        self._owners = {tap: owner for tap, owner in self._owners.items() if index_of(tap) is not None}
        return self._tree.sweep()

    def _missing(self) -> tuple[tuple[str, StepKind], ...]:
        self._set_here = {(tap, kind) for tap, kind in self._set_here if index_of(tap) is not None}
        return tuple(sorted(self._set_here - self._readings().keys()))

    def _readings(self) -> dict[tuple[str, StepKind], ShapingReading]:
        names = {index: name for index, name in socket.if_nameindex() if name not in (SHARED_IFB, "lo")}
        receiving = self._control.class_at(list(names), CLASS_HANDLE)
        found = {
            (name, StepKind.NET_RX): _reading_of(entry, entry.ceil * 8, entry.rate * 8)
            for name, entry in zip(names.values(), receiving, strict=True)
            if entry is not None
        }
        for tap, entry in self._tree.readings().items():
            found[tap, StepKind.NET_TX] = _sending_reading(entry)
        return found

    def _reading(self, tap: str, kind: StepKind) -> ShapingReading | None:
        index = index_of(tap)
        if index is None:
            return None
        if kind is StepKind.NET_RX:
            entry = self._control.class_at([index], CLASS_HANDLE)[0]
            return None if entry is None else _reading_of(entry, entry.ceil * 8, entry.rate * 8)
        found = self._tree.find(tap)
        return None if found is None else _sending_reading(found)

    def _index(self, name: str) -> int:
        index = index_of(name)
        if index is None:
            raise HostError(f"interface {name} does not exist in network namespace {self._namespace or 'of the agent'}")
        return index

    def _free(self, tap: str, kind: StepKind) -> int:
        index = self._index(tap)
        foreign = self._foreign(index, kind)
        if foreign is not None:
            raise Refusal(RefusalCode.FOREIGN_SHAPING, f"{tap}: {foreign}")
        return index

    def _foreign(self, index: int, kind: StepKind) -> str | None:
        found = self._control.qdisc(index, ROOT_PARENT if kind is StepKind.NET_RX else INGRESS_PARENT)
        if found is None:
            return None
        name, handle = found
        if kind is StepKind.NET_RX:
            # the kernel's own defaults have handle 0; libvirt puts a noqueue, which cannot limit anything, on every tap
            harmless = handle in (0, ROOT_HANDLE) or name == "noqueue"
            return None if harmless else f"root qdisc {name} {handle >> 16:x}: is not ours"
        if name != "ingress":
            return f"{name} qdisc is not ours"
        others = self._control.filter_priorities(index, INGRESS_HANDLE) - {FILTER_PRIORITY}
        return f"ingress with filters that are not ours: priority {', '.join(map(str, sorted(others)))}" if others else None


def _reading_of(entry: HtbClass, ceiling: int, rate: int) -> ShapingReading:
    known = entry.dropped is not None and entry.overlimits is not None
    return ShapingReading(
        ceiling_bits_per_s=ceiling,
        rate_bits_per_s=rate,
        dropped_total=(entry.dropped or 0) + (entry.overlimits or 0) if known else None,
        overlimits_total=entry.overlimits,
        backlog_bytes=entry.backlog_bytes,
    )


def _sending_reading(entry: HtbClass) -> ShapingReading:
    holds = sending_of(entry)
    return _reading_of(entry, holds.ceiling, holds.guarantee)


def _too_small(kind: StepKind, value: int, nothing: int) -> Refusal:
    numbers = {"value": value, "least": LEAST_BITS_PER_S}
    return Refusal(RefusalCode.INVALID_VALUE, f"{kind} {value} bits/s: at least {LEAST_BITS_PER_S}, or {nothing}", numbers)
