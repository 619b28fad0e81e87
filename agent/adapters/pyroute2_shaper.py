"""TrafficShaper over rtnetlink: one HTB class per direction of a tap.

Towards the guest (NET_RX) the class sits on the tap's own root. What the guest sends (NET_TX) arrives at the tap's ingress, where nothing
can queue, so a filter redirects it to an IFB device of ours and the class sits there:

    tap  root htb 7a10: → class 7a10:10 (rate = ceil = limit) → fq_codel, or pfifo where the kernel has none
    tap  ingress → u32 match all → mirred redirect → tgi<hash of tap>  root htb 7a10: → class 7a10:10 → leaf

Invariant: only what carries our handle, our filter priority or our IFB name is changed or removed. A root qdisc that somebody gave a
handle, or an ingress with other filters, is theirs: Refusal(FOREIGN_SHAPING). State is read from the kernel each time, so a
restart loses nothing. The handle is unusual on purpose: libvirt's <bandwidth> uses 1:.

All netlink runs in one thread, which has entered the taps' network namespace (pyroute2 would fork for each socket there instead).
Source: tc-htb(8), tc-mirred(8).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.sampling.sampler import ShapingReading
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import UNLIMITED

ROOT_HANDLE: Final = 0x7A100000
CLASS_HANDLE: Final = ROOT_HANDLE | 0x10
LEAF_HANDLE: Final = 0x7A110000
INGRESS_HANDLE: Final = 0xFFFF0000
FILTER_PRIORITY: Final = 0x7A10
IFB_PREFIX: Final = "tgi"
LEAST_BITS_PER_S: Final = 8_000  # one full frame a second and a half: less looks like a dead link

_CLONE_NEWNET: Final = 0x40000000
_ROOT_PARENT: Final = 0xFFFFFFFF
_INGRESS_PARENT: Final = 0xFFFFFFF1  # of ingress and of clsact
_ALL_PROTOCOLS: Final = 3
_T = TypeVar("_T")


def ifb_name(tap: str) -> str:
    """Name of the IFB for a tap: 13 characters of the 15 the kernel allows, the same after every restart."""
    return IFB_PREFIX + hashlib.blake2s(tap.encode(), digest_size=5).hexdigest()


def class_parameters(bits_per_s: int) -> dict[str, int]:
    """HTB parameters in bytes for a limit.

    burst: what passes at line rate before the limit bites: 5 ms of the limit, and at least ten full frames (one offloaded segment is up to
    64 KB; below 24 Mbit/s it is cut up long before). 2 Mbit/s → 15,000 bytes (60 ms); 100 Mbit/s → 62,500; 10 Gbit/s → 6,250,000.
    quantum: bytes a class may send in its turn; with one class per device it decides nothing, and inside 1,000..200,000 the kernel does
    not warn. 1,514 at least: one frame.
    """
    rate = bits_per_s // 8
    burst = max(15_000, rate // 200)
    return {"rate": rate, "ceil": rate, "burst": burst, "cburst": burst, "quantum": min(60_000, max(1_514, rate // 100))}


class Pyroute2Shaper:
    """TrafficShaper and ShapingSource for the taps of one network namespace."""

    def __init__(self, network_namespace: str = "") -> None:
        """`network_namespace`: path of the namespace that holds the taps; empty = our own. Raises HostError when it cannot be entered."""
        self._namespace = network_namespace
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tidegate netlink")
        self._leaf_kind = "fq_codel"
        try:
            self._netlink: Any = self._run(self._open)
        except HostError:
            self._thread.shutdown()
            raise

    def close(self) -> None:
        """Close the socket; what is shaped stays shaped."""
        self._run(self._netlink.close)
        self._thread.shutdown()

    def set_ceiling(self, tap: str, kind: StepKind, bits_per_s: int) -> None:
        """Create or change our class in place; UNLIMITED removes it. Below LEAST_BITS_PER_S: Refusal(INVALID_VALUE).

        Values are kept as whole bytes per second: 1,000,001 bits/s reads back as 1,000,000.
        """
        if bits_per_s != UNLIMITED and bits_per_s < LEAST_BITS_PER_S:
            numbers = {"value": bits_per_s, "least": LEAST_BITS_PER_S}
            raise Refusal(RefusalCode.INVALID_VALUE, f"{kind} {bits_per_s} bits/s: at least {LEAST_BITS_PER_S}, or {UNLIMITED}", numbers)
        self._run(lambda: self._set(tap, kind, bits_per_s))

    def ceiling(self, tap: str, kind: StepKind) -> int:
        """Ceiling in force, read from the kernel; UNLIMITED where there is none of ours."""
        reading = self._run(lambda: self._reading(self._device(tap, kind)))
        return UNLIMITED if reading is None else reading.ceiling_bits_per_s

    def dropped_total(self, tap: str, kind: StepKind) -> int | None:
        """Drops plus overlimits of our class; None where there is none."""
        reading = self._run(lambda: self._reading(self._device(tap, kind)))
        return None if reading is None else reading.dropped_total

    def foreign(self, tap: str, kind: StepKind) -> str | None:
        """What somebody else has put in this direction of the tap; None when the way is free or ours."""
        return self._run(lambda: self._foreign(self._index(tap), kind))

    def release(self, tap: str) -> None:
        """Remove everything of ours from this interface, also when the tap itself is gone."""
        for kind in (StepKind.NET_RX, StepKind.NET_TX):
            self._run(lambda kind=kind: self._remove(tap, kind))  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    def sweep(self) -> tuple[str, ...]:
        """Remove our IFBs whose tap is gone (a VM that was stopped or migrated away). Returns their names."""
        return self._run(self._sweep)

    def readings(self) -> Mapping[tuple[str, StepKind], ShapingReading]:
        """Every class of ours by (tap, direction): one dump of qdiscs, then a few short questions for each."""
        return self._run(self._readings)

    # Everything below runs in the netlink thread.

    def _open(self) -> Any:
        if self._namespace:
            enter_network_namespace(self._namespace)
        return IPRoute()

    def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return self._thread.submit(work).result()
        except NetlinkError as error:
            raise HostError(f"netlink: {error}") from error
        except OSError as error:
            raise HostError(f"network namespace {self._namespace or 'of the agent'}: {error}") from error

    def _set(self, tap: str, kind: StepKind, bits_per_s: int) -> None:
        if bits_per_s == UNLIMITED:
            self._remove(tap, kind)
            return
        index = self._index(tap)
        foreign = self._foreign(index, kind)
        if foreign is not None:
            raise Refusal(RefusalCode.FOREIGN_SHAPING, f"{tap}: {foreign}")
        device = index if kind is StepKind.NET_RX else self._redirected(tap, index)
        parameters = class_parameters(bits_per_s)
        if self._reading(device) is not None:
            self._netlink.tc("change-class", "htb", device, handle=CLASS_HANDLE, parent=ROOT_HANDLE, **parameters)
            return
        if not any(qdisc["handle"] == ROOT_HANDLE for qdisc in self._qdiscs(device)):
            self._netlink.tc("replace", "htb", device, handle=ROOT_HANDLE, default=CLASS_HANDLE & 0xFFFF)
        self._netlink.tc("add-class", "htb", device, handle=CLASS_HANDLE, parent=ROOT_HANDLE, **parameters)
        self._add_leaf(device, parameters["rate"])

    def _add_leaf(self, device: int, rate: int) -> None:
        if self._leaf_kind == "fq_codel":
            try:
                self._netlink.tc("add", "fq_codel", device, handle=LEAF_HANDLE, parent=CLASS_HANDLE)
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise
                self._leaf_kind = "pfifo"
            else:
                return
        # 100 ms of full frames, 50 to 1000: 2 Mbit/s → 50, 100 Mbit/s → 825
        self._netlink.tc("add", "pfifo", device, handle=LEAF_HANDLE, parent=CLASS_HANDLE, limit=min(1000, max(50, rate // 10 // 1514)))

    def _redirected(self, tap: str, index: int) -> int:
        """The IFB that gets what the tap's guest sends; made here when it is not there yet."""
        name = ifb_name(tap)
        if not self._netlink.link_lookup(ifname=name):
            if self._ingress_filters(index) == {FILTER_PRIORITY}:  # it redirects to an IFB that somebody deleted: all is dropped there
                self._netlink.tc("del", "ingress", index)
            self._netlink.link("add", ifname=name, kind="ifb")
        ifb = self._index(name)
        self._netlink.link("set", index=ifb, state="up", ifalias=f"tidegate:{tap}")
        if not any(qdisc["parent"] == _INGRESS_PARENT for qdisc in self._qdiscs(index)):
            self._netlink.tc("add", "ingress", index)
        if not self._ingress_filters(index):
            redirect = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": ifb}
            self._netlink.tc(
                "add-filter",
                "u32",
                index,
                parent=INGRESS_HANDLE,
                prio=FILTER_PRIORITY,
                protocol=_ALL_PROTOCOLS,
                keys=["0x0/0x0+0"],
                target=0x10000,
                action=redirect,
            )
        return ifb

    def _remove(self, tap: str, kind: StepKind) -> None:
        indexes = self._netlink.link_lookup(ifname=tap)
        if kind is StepKind.NET_RX:
            if indexes and any(qdisc["handle"] == ROOT_HANDLE for qdisc in self._qdiscs(indexes[0])):
                self._netlink.tc("del", "htb", indexes[0], handle=ROOT_HANDLE)
            return
        ifbs = self._netlink.link_lookup(ifname=ifb_name(tap))
        if indexes and self._ingress_filters(indexes[0]) == {FILTER_PRIORITY}:
            self._netlink.tc("del", "ingress", indexes[0])
        if ifbs:
            self._netlink.link("del", index=ifbs[0])

    def _sweep(self) -> tuple[str, ...]:
        names = {link.get_attr("IFLA_IFNAME"): link for link in self._netlink.get_links()}
        gone = []
        for name, link in names.items():
            owner = (link.get_attr("IFLA_IFALIAS") or "").removeprefix("tidegate:")
            if name.startswith(IFB_PREFIX) and owner and ifb_name(owner) == name and owner not in names:
                self._netlink.link("del", index=link["index"])
                gone.append(name)
        return tuple(sorted(gone))

    def _readings(self) -> dict[tuple[str, StepKind], ShapingReading]:
        shaped = {qdisc["index"] for qdisc in self._netlink.get_qdiscs() if qdisc["handle"] == ROOT_HANDLE}
        found = {}
        for index in shaped:
            for link in self._netlink.get_links(index):
                name, owner = link.get_attr("IFLA_IFNAME"), (link.get_attr("IFLA_IFALIAS") or "").removeprefix("tidegate:")
                tap, kind = (owner, StepKind.NET_TX) if name == ifb_name(owner) else (name, StepKind.NET_RX)
                reading = self._reading(self._device(tap, kind))
                if reading is not None:
                    found[(tap, kind)] = reading
        return found

    def _device(self, tap: str, kind: StepKind) -> int | None:
        """Index of the device that carries our class; None when there is none.

        An IFB counts only while the tap redirects to it: after a restart of the VM the tap is a new one of the same name.
        """
        taps = self._netlink.link_lookup(ifname=tap)
        if kind is StepKind.NET_RX or not taps:
            return taps[0] if taps else None
        ifbs = self._netlink.link_lookup(ifname=ifb_name(tap))
        return ifbs[0] if ifbs and FILTER_PRIORITY in self._ingress_filters(taps[0]) else None

    def _index(self, name: str) -> int:
        found: list[int] = self._netlink.link_lookup(ifname=name)
        if not found:
            raise HostError(f"interface {name} does not exist in network namespace {self._namespace or 'of the agent'}")
        return found[0]

    def _qdiscs(self, index: int) -> list[Any]:
        return [qdisc for qdisc in self._netlink.get_qdiscs(index=index) if qdisc["index"] == index]

    def _ingress_filters(self, index: int) -> set[int]:
        """Priorities of the filters on ingress (the kernel lists a filter, its hash table and its entry under one priority)."""
        if not any(qdisc["parent"] == _INGRESS_PARENT for qdisc in self._qdiscs(index)):
            return set()
        return {entry["info"] >> 16 for entry in self._netlink.get_filters(index=index, parent=INGRESS_HANDLE)}

    def _foreign(self, index: int, kind: StepKind) -> str | None:
        for qdisc in self._qdiscs(index):
            name, handle = qdisc.get_attr("TCA_KIND"), qdisc["handle"]
            if kind is StepKind.NET_RX and qdisc["parent"] == _ROOT_PARENT and handle not in (0, ROOT_HANDLE) and name != "noqueue":
                # the kernel's own defaults have handle 0; libvirt puts a noqueue, which cannot limit anything, on every tap
                return f"root qdisc {name} {handle >> 16:x}: is not ours"
            if kind is StepKind.NET_TX and qdisc["parent"] == _INGRESS_PARENT:
                others = self._ingress_filters(index) - {FILTER_PRIORITY} if name == "ingress" else set()
                if name != "ingress" or others:
                    return f"{name} with filters that are not ours" if others else f"{name} qdisc is not ours"
        return None

    def _reading(self, index: int | None) -> ShapingReading | None:
        for entry in self._netlink.get_classes(index=index) if index is not None else ():
            if entry["handle"] != CLASS_HANDLE or entry.get_attr("TCA_KIND") != "htb":
                continue
            options, stats = entry.get_attr("TCA_OPTIONS"), entry.get_attr("TCA_STATS2")
            ceiling = options.get_attr("TCA_HTB_CEIL64") or options.get_attr("TCA_HTB_PARMS")["ceil"]  # 64 bits above 34 Gbit/s
            queue = None if stats is None else stats.get_attr("TCA_STATS_QUEUE")
            dropped = None if queue is None else queue["drops"] + queue["overlimits"]
            return ShapingReading(ceiling_bits_per_s=ceiling * 8, dropped_total=dropped)
        return None


def enter_network_namespace(path: str) -> None:
    """Move the calling thread, and nothing else, into the namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(namespace)
