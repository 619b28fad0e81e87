"""What guests send, in one tree for the whole network namespace: uplink → client → VM → leaf, on one IFB device of ours.

What a guest sends arrives at its tap's ingress, where nothing can queue. A filter there writes the VM's class on each packet (a bpf
program of four instructions) and redirects it to the IFB, whose HTB takes that class at once. Behind it stands one u32 entry for each tap,
which asks which interface a packet came by and leads to the same class: for kernels that allow no bpf, and as the map from class to tap, so
that a restart of the agent loses nothing. The guest has no say in either: spoofed addresses change nothing.

    tap  ingress → bpf: priority = class → mirred redirect → tgi-uplink  root htb 7a10: → class 7a10:1000+16n → leaf
                                                                              entry n: indev tap ↗

Invariant: a tap is redirected only when its class, its leaf and its entry are there, and they go only when the redirect is gone: a process
killed in between leaves either no shaping or all of it. What it leaves unused is found by `clean`, before the next change and by the sweep.
Why one tree, and what it costs: docs/adr/0006. Runs in the netlink thread only. Source: tc-htb(8), tc-mirred(8), net/sched/cls_u32.c.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from agent.adapters.shaping_netlink import (
    FILTER_PRIORITY,
    FIRST_NODE,
    INGRESS_HANDLE,
    INGRESS_PARENT,
    ROOT_PARENT,
    Entry,
    HtbClass,
    TrafficControl,
)
from agent.adapters.shaping_rates import (
    FIRST_CLIENT,
    MOST_VMS,
    ROOT_HANDLE,
    UPLINK_HANDLE,
    ClassSetting,
    alone,
    ceiling_of,
    client_handle,
    codel_target_us,
    fifo_limit,
    guarantee_of,
    node_of,
    of_client,
    of_vm,
    priority_of,
    vm_handle,
)
from shared import failpoint
from shared.errors import HostError, Refusal
from shared.model import Priority
from shared.refusal import RefusalCode
from shared.units import UNLIMITED

SHARED_IFB: Final = "tgi-uplink"
IFB_ALIAS: Final = "tidegate: what guests send"


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tap it is."""

    client: str = ""
    priority: Priority = Priority.NORMAL


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a tap's sending: bits/s, UNLIMITED and 0 when nothing does."""

    ceiling: int = UNLIMITED
    guarantee: int = 0


class _Tree(msgspec.Struct, frozen=True, kw_only=True):
    """The device and what is on it."""

    ifb: int
    classes: dict[int, HtbClass]
    entries: dict[int, Entry]
    taps: dict[str, int]  # tap -> its class


def index_of(name: str) -> int | None:
    """Index of an interface of the calling thread's namespace."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


class Leaves:
    """Puts the leaf on a class: fq_codel, or pfifo where the kernel has none."""

    def __init__(self, control: TrafficControl) -> None:
        self._control = control
        self._has_fq_codel = True  # until the kernel says otherwise

    def add(self, device: int, parent: int, rate: int) -> None:
        """`rate` in bytes/s: what the class may send at most."""
        if self._has_fq_codel:
            self._has_fq_codel = self._control.add_fq_codel(device, parent, codel_target_us(rate))
        if not self._has_fq_codel:
            self._control.add_fifo(device, parent, fifo_limit(rate))


class SendingTree:
    """The IFB of one network namespace. `uplink` in bytes/s."""

    def __init__(self, control: TrafficControl, leaves: Leaves, uplink: int) -> None:
        self._control = control
        self._leaves = leaves
        self._uplink = uplink

    def put(self, tap: str, index: int, change: Callable[[Sending], Sending], owner: Assignment | None) -> bool:
        """Change what holds for a tap's sending, in place where it is there; `owner` None = as it is. False when nothing holds any more.

        Raises Refusal(HOST_COMMIT_LIMIT) when the uplink cannot carry all guarantees.
        """
        ifb = index_of(SHARED_IFB)
        tree = None if ifb is None else self._tree(ifb)
        known = None if tree is None else tree.classes.get(tree.taps.get(tap, 0))
        redirect = self._control.redirects([index])[0]
        in_force = known is not None and redirect is not None and redirect.to == ifb
        before = sending_of(known) if known is not None and in_force else Sending()
        wanted = change(before)
        if wanted == Sending():
            self.remove(tap, index)
            return False
        tree = self.clean(self._ready(tree))
        priority = owner.priority if owner else priority_of(known.prio) if known else Priority.NORMAL
        client = client_handle(owner.client) if owner else known.parent if known else client_handle("")
        setting = of_vm(wanted.ceiling, wanted.guarantee, priority, self._uplink)
        others = [entry for name, at in tree.taps.items() if name != tap and (entry := tree.classes.get(at))]
        if wanted.guarantee > before.guarantee:  # the uplink may have been configured narrower: what was promised stays
            self._admit(tap, wanted.guarantee, others)
        siblings = [entry.rate for entry in others if entry.parent == client]
        self._set(tree, client, UPLINK_HANDLE, of_client([*siblings, setting.rate], self._uplink))
        failpoint.hit("shaper.between")
        # a class cannot move; and the kernel takes up another prio only when the queue was empty once, which under load it never is
        if known is not None and (known.parent, known.prio) == (client, setting.prio):
            self._set(tree, known.handle, client, setting)
            self._complete(tree, known.handle, known.leaf, setting.ceil)
            self._redirect(index, tree.ifb, known.handle)
        else:
            self._lead(tree, tap, index, client, setting)
        if known is not None and (known.parent, known.prio) != (client, setting.prio):
            self._settle_client(tree.ifb, known.parent)
        return True

    def assign(self, tap: str, index: int, owner: Assignment) -> None:
        """Client and priority of a tap that has a class; of one that has none nothing is changed."""
        found = self.find(tap)
        if found is None:
            return
        if found.parent != client_handle(owner.client) or priority_of(found.prio) is not owner.priority:
            self.put(tap, index, lambda now: now, owner)

    def remove(self, tap: str, index: int | None) -> None:
        """End what we do to a tap's sending, also when the tap itself is gone. The device goes with its last tap."""
        if index is not None and self._control.qdisc(index, INGRESS_PARENT) == ("ingress", INGRESS_HANDLE):
            priorities = self._control.filter_priorities(index, INGRESS_HANDLE)
            if priorities == {FILTER_PRIORITY}:
                self._control.delete_qdisc(index, INGRESS_HANDLE, INGRESS_PARENT)
            elif FILTER_PRIORITY in priorities:  # somebody put a filter beside ours: theirs stays
                self._control.delete_filter(index, INGRESS_HANDLE, 0)
            failpoint.hit("shaper.between")
        ifb = index_of(SHARED_IFB)
        if ifb is None:
            return
        tree = self.clean(self._tree(ifb))
        handle = tree.taps.get(tap)
        if handle is not None:
            self._drop(tree, handle)
            failpoint.hit("shaper.between")
        if not set(tree.taps) - {tap}:
            self._control.delete_link(ifb)
        elif handle is not None:
            self._settle_client(ifb, tree.classes[handle].parent)

    def sweep(self) -> tuple[str, ...]:
        """Remove what leads from taps that are gone, or was begun and not finished. Returns the classes."""
        ifb = index_of(SHARED_IFB)
        if ifb is None:
            return ()
        before = self._tree(ifb)
        after = self.clean(before)
        if not after.taps:
            self._control.delete_link(ifb)
        return tuple(f"7a10:{handle & 0xFFFF:x}" for handle in sorted(before.classes.keys() - after.classes.keys()))

    def find(self, tap: str) -> HtbClass | None:
        """The class that the tap's packets go through; None where they go free."""
        return self.readings([tap]).get(tap)

    def readings(self, only: Iterable[str] | None = None) -> dict[str, HtbClass]:
        """tap -> its class, of every tap that really is redirected here: after a restart of a VM the tap is a new one of the same name."""
        ifb = index_of(SHARED_IFB)
        if ifb is None:
            return {}
        tree = self._tree(ifb)
        taps = [tap for tap in tree.taps if only is None or tap in only]
        indexes = [index_of(tap) for tap in taps]
        redirects = self._control.redirects([index or 0 for index in indexes])
        return {
            tap: tree.classes[tree.taps[tap]]
            for tap, redirect in zip(taps, redirects, strict=True)
            if redirect is not None and redirect.to == ifb and tree.taps[tap] in tree.classes
        }

    def clean(self, tree: _Tree) -> _Tree:
        """The tree without what nothing leads to: entries of vanished taps, classes without an entry, clients without a VM."""
        led = set(tree.taps.values())
        for entry in tree.entries.values():
            if entry.target not in led:
                self._control.delete_filter(tree.ifb, ROOT_HANDLE, entry.handle)
        kept = dict(tree.classes)
        for handle in tree.classes:
            if node_of(handle) is not None and handle not in led:
                self._control.delete_class(tree.ifb, handle)
                del kept[handle]
        for handle in [handle for handle in kept if handle >= FIRST_CLIENT]:
            if not any(child.parent == handle for child in kept.values()):
                self._control.delete_class(tree.ifb, handle)
                del kept[handle]
        return msgspec.structs.replace(tree, classes=kept)

    def _tree(self, ifb: int) -> _Tree:
        classes = self._control.classes(ifb)
        entries = self._control.entries(ifb, ROOT_HANDLE)
        taps: dict[str, int] = {}
        for _, entry in sorted(entries.items()):
            if entry.indev and entry.target in classes:
                taps.setdefault(entry.indev, entry.target)  # the first entry is the one that the kernel obeys
        return _Tree(ifb=ifb, classes=classes, entries=entries, taps=taps)

    def _ready(self, tree: _Tree | None) -> _Tree:
        """The device with its root and the uplink's class, made where they are missing."""
        if tree is None:
            self._control.add_ifb(SHARED_IFB)
            failpoint.hit("shaper.between")
            made = index_of(SHARED_IFB)
            if made is None:
                raise HostError(f"interface {SHARED_IFB} vanished as soon as it was made")
            tree = self._tree(made)
        ifb = tree.ifb
        if UPLINK_HANDLE not in tree.classes:
            self._control.raise_link(ifb, IFB_ALIAS)
            failpoint.hit("shaper.between")
            if self._control.qdisc(ifb, ROOT_PARENT) != ("htb", ROOT_HANDLE):
                self._control.add_root(ifb, ROOT_HANDLE, 0)  # what no entry knows passes unshaped
                failpoint.hit("shaper.between")
        self._set(tree, UPLINK_HANDLE, ROOT_HANDLE, alone(self._uplink * 8))
        return tree

    def _admit(self, tap: str, guarantee: int, others: Iterable[HtbClass]) -> None:
        """A rate is honoured whatever the uplink carries: more promised than it carries would be a promise to nobody."""
        promised = sum(guarantee_of(entry.rate, entry.quantum) for entry in others)
        if promised + guarantee > self._uplink * 8:
            numbers = {"value": guarantee, "promised": promised, "uplink": self._uplink * 8}
            text = f"net_tx_rate {guarantee} bits/s of {tap}: {promised} of the uplink's {self._uplink * 8} are promised to others"
            raise Refusal(RefusalCode.HOST_COMMIT_LIMIT, text, numbers)

    def _set(self, tree: _Tree, handle: int, parent: int, setting: ClassSetting) -> None:
        known = tree.classes.get(handle)
        if known is None or (known.rate, known.ceil, known.quantum, known.prio) != (
            setting.rate,
            setting.ceil,
            setting.quantum,
            setting.prio,
        ):
            self._control.set_class(tree.ifb, handle, parent, setting, create=known is None)

    def _complete(self, tree: _Tree, handle: int, leaf: int, ceil: int) -> None:
        if not leaf:
            self._leaves.add(tree.ifb, handle, min(ceil, self._uplink))

    def _lead(self, tree: _Tree, tap: str, index: int, client: int, setting: ClassSetting) -> None:
        """A new class for the tap, whole before anything leads to it; then the one it had goes, with the packets that wait in it."""
        node = next((node for node in range(1, MOST_VMS + 1) if vm_handle(node) not in tree.classes), None)
        if node is None:
            raise HostError(f"{tap}: all of {MOST_VMS} classes of {SHARED_IFB} are taken")
        handle = vm_handle(node)
        self._set(tree, handle, client, setting)
        failpoint.hit("shaper.between")
        self._complete(tree, handle, 0, setting.ceil)
        failpoint.hit("shaper.between")
        self._control.lead(tree.ifb, ROOT_HANDLE, node, tap, handle)
        failpoint.hit("shaper.between")
        self._redirect(index, tree.ifb, handle)
        failpoint.hit("shaper.between")
        if tap in tree.taps:
            self._drop(tree, tree.taps[tap])

    def _drop(self, tree: _Tree, handle: int) -> None:
        self._control.delete_filter(tree.ifb, ROOT_HANDLE, FIRST_NODE - 1 + (node_of(handle) or 0))
        failpoint.hit("shaper.between")
        self._control.delete_class(tree.ifb, handle)

    def _redirect(self, index: int, ifb: int, handle: int) -> None:
        found = self._control.redirects([index])[0]
        if found is not None and found.to == ifb and found.target in (handle, 0):
            return
        failpoint.hit("shaper.between")
        if found is not None and found.to != ifb:  # to an IFB that somebody deleted: all is dropped there
            self._control.delete_filter(index, INGRESS_HANDLE, 0)
        elif self._control.qdisc(index, INGRESS_PARENT) is None:
            self._control.add_ingress(index)
            failpoint.hit("shaper.between")
        self._control.redirect(index, ifb, handle)

    def _settle_client(self, ifb: int, client: int) -> None:
        """A client's rate after one of its VMs has gone: the sum of those that are left; without any, no class."""
        classes = self._control.classes(ifb)
        rates = [entry.rate for entry in classes.values() if entry.parent == client]
        tree = _Tree(ifb=ifb, classes=classes, entries={}, taps={})
        if rates:
            self._set(tree, client, UPLINK_HANDLE, of_client(rates, self._uplink))
        else:
            self._control.delete_class(ifb, client)


def sending_of(entry: HtbClass) -> Sending:
    """What a VM's class was made for."""
    return Sending(ceiling=ceiling_of(entry.ceil), guarantee=guarantee_of(entry.rate, entry.quantum))
