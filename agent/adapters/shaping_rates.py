"""What our traffic classes are set to: handles, rates, bursts and turns, from a ceiling, a guarantee, a client and a priority.

    root 7a10: ── 7a10:1  uplink ── 7a10:8xxx  a client ── 7a10:1xx0  a VM ── leaf         (what guests send: one tree for all)
    root 7a10: ── 7a10:10  ceiling ── leaf                                                  (towards a guest: on its tap)

HTB serves a class from its own rate first, then from what its client's other VMs leave of theirs, then from what the uplink has left;
within the last two the lowest `prio` goes first, and classes of one prio take turns of `quantum` bytes. A rate is honoured whatever the
classes above it say, so the sum of rates must stay below the uplink (`room`).
Pure. Source: tc-htb(8), net/sched/sch_htb.c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from shared.model import Priority
from shared.units import UNLIMITED

ROOT_HANDLE: Final = 0x7A100000  # unusual on purpose: libvirt's <bandwidth> and most scripts use 1:
CLASS_HANDLE: Final = ROOT_HANDLE | 0x10  # towards the guest
UPLINK_HANDLE: Final = ROOT_HANDLE | 0x1
FIRST_VM: Final = ROOT_HANDLE | 0x1000  # plus 16 times the number of the u32 entry that leads to it
MOST_VMS: Final = 1791
FIRST_CLIENT: Final = ROOT_HANDLE | 0x8000
_CLIENTS: Final = 0x7FF0

LEAST_BITS_PER_S: Final = 8_000  # one full frame a second and a half: less looks like a dead link
LEAST_SHARE_BITS_PER_S: Final = 1_000_000  # what a VM without a guarantee gets of a full uplink: guard.net_floor_bits_per_s' default ...
LEAST_SHARE: Final = 1_000  # ... but of a narrow uplink a thousandth, so that 100 such VMs take a tenth at most
NO_CEILING: Final = 1 << 40  # bytes/s: 8.8 Tbit/s stands for UNLIMITED, because HTB knows no class without a ceiling
FRAME: Final = 1_514


class ClassSetting(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of one HTB class; rates in bytes/s, burst, cburst and quantum in bytes."""

    rate: int
    ceil: int
    burst: int
    cburst: int
    quantum: int
    prio: int = 0


def burst_of(rate: int) -> int:
    """What may pass at line rate before `rate` (bytes/s) bites: 5 ms of it, and at least ten full frames.

    5 ms covers the kernel's timers and the time until a queue is looked at again even on a busy host; less would cost accuracy at high
    rates, more would let microbursts through. Ten frames keep TCP's first window whole. One offloaded segment is up to 64 KB: HTB lets it
    pass and makes the class wait for it afterwards, so the mean holds. 2 Mbit/s → 15,140 bytes (60 ms); 100 Mbit/s → 62,500; 10 Gbit/s →
    6,250,000.
    """
    return max(10 * FRAME, rate // 200)


def quantum_of(rate: int) -> int:
    """Bytes of one turn: 1 ms of `rate` (bytes/s), within one frame and a whole offloaded segment (65,536 and its headers).

    A turn smaller than a packet makes the division one by packets instead of bytes; a larger one only adds waiting. 10 Mbit/s → 1,514
    (less than a frame is no turn); 100 Mbit/s → 12,500; from 560 Mbit/s on → 70,000 (56 µs of 10 Gbit/s). Given always, so that the kernel
    derives none from r2q and has nothing to warn of (it does outside 1,000..200,000).
    """
    return min(70_000, max(FRAME, rate // 1_000))


def vm_handle(node: int) -> int:
    """Class of a VM by the number of its entry, 1..MOST_VMS.

    Packets carry it as their priority past the tree to the uplink, where pfifo_fast and its like look at the lowest four bits: those are
    0 there as in any other packet.
    """
    return FIRST_VM + 16 * node


def node_of(handle: int) -> int | None:
    """The inverse; None for a class that is no VM's."""
    node, rest = divmod(handle - FIRST_VM, 16)
    return node if not rest and 1 <= node <= MOST_VMS else None


def alone(bits_per_s: int) -> ClassSetting:
    """The only class of a device: rate = ceil = limit."""
    rate = bits_per_s // 8
    burst = burst_of(rate)
    return ClassSetting(rate=rate, ceil=rate, burst=burst, cburst=burst, quantum=quantum_of(rate))


def of_client(rates: Iterable[int], uplink: int) -> ClassSetting:
    """A client's class: the sum of its VMs' rates, so that what one leaves goes to its siblings first. Bytes/s."""
    rate = max(LEAST_BITS_PER_S // 8, sum(rates))
    return ClassSetting(rate=rate, ceil=uplink, burst=burst_of(rate), cburst=burst_of(uplink), quantum=quantum_of(uplink))


def of_vm(ceiling: int, guarantee: int, priority: Priority, uplink: int) -> ClassSetting:
    """A VM's class: `ceiling` (bits/s or UNLIMITED) and `guarantee` (bits/s, 0 = none), with `uplink` in bytes/s.

    Turns of an odd number of bytes mark a guarantee, so that a restarted agent tells it from the least share (`guarantee_of`).
    """
    ceil = NO_CEILING if ceiling == UNLIMITED else ceiling // 8
    rate = guarantee // 8 if guarantee else min(least_share(uplink), ceil)
    quantum = quantum_of(uplink) & ~1 | (1 if guarantee else 0)
    return ClassSetting(rate=rate, ceil=ceil, burst=burst_of(rate), cburst=burst_of(ceil), quantum=quantum, prio=prio_of(priority))


def least_share(uplink: int) -> int:
    """Bytes/s that a VM without a guarantee is served before anybody borrows."""
    return max(LEAST_BITS_PER_S // 8, min(LEAST_SHARE_BITS_PER_S // 8, uplink // LEAST_SHARE))


def guarantee_of(rate: int, quantum: int) -> int:
    """The guarantee in bits/s that a VM's class was made for; 0 where its rate is only the least share."""
    return rate * 8 if quantum % 2 else 0


def ceiling_of(ceil: int) -> int:
    """The ceiling in bits/s that a class of `ceil` bytes/s means."""
    return UNLIMITED if ceil >= NO_CEILING else ceil * 8


def prio_of(priority: Priority) -> int:
    """HTB serves 0 first."""
    return Priority.CRITICAL - priority


def priority_of(prio: int) -> Priority:
    """The priority that a class of this prio was made for."""
    return Priority(max(Priority.LOW, Priority.CRITICAL - prio))


def client_handle(client: str) -> int:
    """Class of a client, the same after every restart without being written down.

    32,752 places: of 50 clients two fall together in one fleet of 27, and then share what their VMs leave of their guarantees; no more.
    """
    return FIRST_CLIENT + int.from_bytes(hashlib.blake2s(client.encode(), digest_size=4).digest(), "big") % _CLIENTS


def fifo_limit(rate: int) -> int:
    """Packets in a leaf without fq_codel: 100 ms of full frames at `rate` bytes/s, 50 to 1000. 2 Mbit/s → 50, 100 Mbit/s → 825."""
    return min(1000, max(50, rate // 10 // FRAME))


def codel_target_us(rate: int) -> int:
    """fq_codel's target: its own 5 ms, but one and a half frames' time where a frame takes longer (below 3.6 Mbit/s: tc-fq_codel(8))."""
    return max(5_000, 1_500_000 * FRAME // rate)
