"""The requests that shaping makes, as raw rtnetlink: qdiscs, HTB classes, the u32 filters to them, and the IFB.

pyroute2 takes 0.7 ms to read one class and 2 ms to change one, most of it in its message machinery, and cannot say `indev`; a round
reads two classes for each of 100 taps. It also takes 10 MiB of memory, a sixth of what the agent may use. Here requests are packed into few
datagrams and only the attributes that we use are unpacked.

Every request asks for an acknowledgement, so each one has an end: its errno, 0 included. Not thread safe; lives in the network namespace of
the thread that opens it. Source: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from agent.adapters.shaping_rates import ClassSetting
from shared.errors import HostError

INGRESS_HANDLE: Final = 0xFFFF0000
INGRESS_PARENT: Final = 0xFFFFFFF1  # of ingress and of clsact
ROOT_PARENT: Final = 0xFFFFFFFF
FILTER_PRIORITY: Final = 0x7A10
FIRST_NODE: Final = 0x80000001  # u32's first hash table, entry 1

_PROGRAM_NAME: Final = "tidegate "
_SKB_PRIORITY: Final = 32  # in struct __sk_buff
_BPF_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_CLONE_NEWNET: Final = 0x40000000
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _ECHO, _DUMP, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x8, 0x300, 0x100, 0x200, 0x400
_QDISC, _CLASS, _FILTER = 36, 40, 44  # RTM_NEW...; +1 deletes, +2 gets
_LINK: Final = 16
_IFNAME, _LINKINFO, _IFALIAS = 3, 18, 20
_UP: Final = 1
_NEW, _DEL, _GET = 0, 1, 2
_KIND, _OPTIONS, _STATS2 = 1, 2, 7
_NESTED_MASK: Final = 0x3FFF
_ALL_PROTOCOLS: Final = socket.htons(0x0003)
_TICK_NS: Final = 64  # psched: one tick is 2**6 ns (/proc/net/psched says 15.625 ticks per µs)
_DEADLINE_S: Final = 5.0  # the kernel answers at once unless somebody sits on the routing lock
_BATCH: Final = 64  # requests in one datagram; an answer takes up to 8 KB of the buffer with what the kernel keeps around it
_RECEIVE_BYTES: Final = 1 << 20
_SO_RCVBUFFORCE: Final = 33  # past net.core.rmem_max, for CAP_NET_ADMIN
_U32: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=IHHII")
_TC: Final = struct.Struct("=BxHiIII")
_IFINFO: Final = struct.Struct("=BxHiII")
_ATTR: Final = struct.Struct("=HH")
_HTB: Final = struct.Struct("=BBHhHIBBHhHIIIIII")
_QUEUE: Final = struct.Struct("=IIIII")
_MIRRED: Final = struct.Struct("=IIiiiiI")


class HtbClass(msgspec.Struct, frozen=True, kw_only=True):
    """One HTB class as the kernel shows it; rates in bytes/s."""

    handle: int
    parent: int
    leaf: int  # handle of the leaf qdisc that somebody gave it; 0 = none, or the kernel's own
    rate: int
    ceil: int
    quantum: int
    prio: int
    level: int
    sent_bytes: int | None = None
    dropped: int | None = None
    overlimits: int | None = None
    backlog_bytes: int | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a u32 filter of ours: packets that came by `indev` go to class `target`."""

    handle: int
    target: int
    indev: str  # "" = the device is gone


class Redirect(msgspec.Struct, frozen=True, kw_only=True):
    """What our filter on a device's ingress does: to which interface packets go, and which class it writes on them."""

    to: int  # 0: that interface is gone, all is dropped
    target: int  # 0: none, the entries at the other end decide


Answer = tuple[int, list[bytes]]  # errno and the messages that came


class TrafficControl:
    """A netlink socket of the namespace that the calling thread is in. Errors of the kernel are HostErrors; what is absent is None."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        except PermissionError:  # the default then: enough for a batch as far as seen
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self._socket.settimeout(_DEADLINE_S)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    # Reading

    def classes(self, index: int) -> dict[int, HtbClass]:
        """Every HTB class of a device by handle."""
        found = [_class_of(message) for message in self._dump(_CLASS, index)]
        return {entry.handle: entry for entry in found if entry is not None}

    def class_at(self, indexes: Sequence[int], handle: int) -> list[HtbClass | None]:
        """The class `handle` of each device; None where there is none."""
        answers = self._ask([_message(_CLASS + _GET, _ECHO, index, handle) for index in indexes])
        return [_class_of(messages[0]) if not code and messages else None for code, messages in answers]

    def redirects(self, indexes: Sequence[int]) -> list[Redirect | None]:
        """What our filter on each device's ingress does; None without one."""
        found = self._redirects(indexes, "bpf", 1)
        rest = [i for i, each in enumerate(found) if each is None]
        for i, each in zip(rest, self._redirects([indexes[i] for i in rest], "u32", FIRST_NODE), strict=True):
            found[i] = each
        return found

    def _redirects(self, indexes: Sequence[int], kind: str, handle: int) -> list[Redirect | None]:
        info, kind_attribute = FILTER_PRIORITY << 16 | _ALL_PROTOCOLS, _text(_KIND, kind)
        answers = self._ask([_message(_FILTER + _GET, _ECHO, index, handle, INGRESS_HANDLE, info, kind_attribute) for index in indexes])
        return [_redirect_of(messages[0]) if not code and messages else None for code, messages in answers]

    def entries(self, index: int, parent: int) -> dict[int, Entry]:
        """Our u32 entries below a qdisc, by handle."""
        found = [_entry_of(message) for message in self._dump(_FILTER, index, parent)]
        return {entry.handle: entry for entry in found if entry is not None}

    def filter_priorities(self, index: int, parent: int) -> set[int]:
        """Priorities of all filters below a qdisc, whoever made them."""
        return {_TC.unpack_from(message, 16)[5] >> 16 for message in self._dump(_FILTER, index, parent)}

    def qdisc(self, index: int, parent: int) -> tuple[str, int] | None:
        """Kind and handle of the qdisc at ROOT_PARENT or INGRESS_PARENT; None where there is none."""
        code, messages = self._ask([_message(_QDISC + _GET, _ECHO, index, parent=parent)])[0]
        if code or not messages:
            return None
        kind = _attributes(messages[0], 36)[_KIND].rstrip(b"\0").decode()
        return kind, _TC.unpack_from(messages[0], 16)[3]

    # Changing

    def set_class(self, index: int, handle: int, parent: int, setting: ClassSetting, *, create: bool) -> None:
        """Make a class, or change it in place: its queue and its tokens stay."""
        flags = _CREATE | _EXCL if create else 0
        self._change(_message(_CLASS + _NEW, flags, index, handle, parent, 0, _text(_KIND, "htb") + _htb_options(setting)))

    def add_root(self, index: int, handle: int, default: int) -> None:
        """An HTB in place of the kernel's own root; packets that no filter knows go to class `default`, 0 = past all classes."""
        options = _attr(_OPTIONS, _attr(2, struct.pack("=IIIII", 3, 10, default, 0, 0)))  # version 3, r2q 10 (never used)
        self._change(_message(_QDISC + _NEW, _CREATE | _REPLACE, index, handle, ROOT_PARENT, 0, _text(_KIND, "htb") + options))

    def add_ingress(self, index: int) -> None:
        """The place for filters on what comes in by a device."""
        self._change(_message(_QDISC + _NEW, _CREATE | _EXCL, index, INGRESS_HANDLE, INGRESS_PARENT, 0, _text(_KIND, "ingress")))

    def add_fifo(self, index: int, parent: int, packets: int) -> None:
        """A plain queue as the leaf of a class."""
        attributes = _text(_KIND, "pfifo") + _attr(_OPTIONS, struct.pack("=I", packets))
        self._change(_message(_QDISC + _NEW, _CREATE | _EXCL, index, 0, parent, 0, attributes))

    def add_fq_codel(self, index: int, parent: int, target_us: int) -> bool:
        """fq_codel as the leaf of a class; False where the kernel has none."""
        attributes = _text(_KIND, "fq_codel") + _attr(_OPTIONS, _attr(1, struct.pack("=I", target_us)))
        return self._change(_message(_QDISC + _NEW, _CREATE | _EXCL, index, 0, parent, 0, attributes), absent=True)

    def delete_qdisc(self, index: int, handle: int, parent: int) -> None:
        """Remove a qdisc and all below it; one that is gone is no error."""
        self._change(_message(_QDISC + _DEL, 0, index, handle, parent), absent=True)

    def delete_class(self, index: int, handle: int) -> None:
        """Remove a class that nothing leads to; one that is gone is no error."""
        self._change(_message(_CLASS + _DEL, 0, index, handle), absent=True)

    def lead(self, index: int, parent: int, node: int, indev: str, target: int) -> None:
        """Packets that came in by interface `indev` go to class `target`. `node`: 1..4095, the entry's number.

        The kernel compares the interface that the packet really came by: nothing in the packet, and so nothing that a guest writes.
        """
        options = _attr(1, struct.pack("=I", target)) + _match_all() + _text(8, indev)
        self._add_filter(index, parent, FIRST_NODE - 1 + node, options)

    def redirect(self, index: int, to: int, target: int) -> None:
        """Everything that comes in by a device leaves through another one, with class `target` written on it where bpf is allowed.

        HTB takes a class that is written on a packet at once, else it asks the entries one after the other. In place where it is there.
        """
        mirred = _MIRRED.pack(0, 0, 4, 0, 0, 1, to)  # stolen; redirected to the egress
        action = _attr(1, _text(1, "mirred") + _attr(2, _attr(2, mirred)))
        program = load_marking_program(target)
        if program is None:
            self._add_filter(index, INGRESS_HANDLE, FIRST_NODE, _match_all() + _attr(7, action))
            return
        try:
            options = _attr(1, action) + _attr(6, struct.pack("=I", program)) + _text(7, f"{_PROGRAM_NAME}{target:x}")
            attributes = _text(_KIND, "bpf") + _attr(_OPTIONS, options)
            info = FILTER_PRIORITY << 16 | _ALL_PROTOCOLS
            self._change(_message(_FILTER + _NEW, _CREATE, index, 1, INGRESS_HANDLE, info, attributes))
        finally:
            os.close(program)  # the filter holds it

    def delete_filter(self, index: int, parent: int, handle: int) -> None:
        """Remove one entry, or with `handle` 0 the whole filter of ours; what is gone is no error."""
        info = FILTER_PRIORITY << 16 | _ALL_PROTOCOLS
        kind = _text(_KIND, "u32") if handle else b""
        self._change(_message(_FILTER + _DEL, 0, index, handle, parent, info, kind), absent=True)

    def add_ifb(self, name: str) -> None:
        """A new IFB device, down."""
        attributes = _text(_IFNAME, name) + _attr(_LINKINFO, _text(1, "ifb"))
        self._change(_link_message(_LINK + _NEW, _CREATE | _EXCL, 0, 0, attributes))

    def raise_link(self, index: int, alias: str) -> None:
        """Set a device up and give it an alias."""
        self._change(_link_message(_LINK + _NEW, 0, index, _UP, _text(_IFALIAS, alias)))

    def delete_link(self, index: int) -> None:
        """Remove a device; one that is gone is no error."""
        self._change(_link_message(_LINK + _DEL, 0, index, 0, b""), absent=True)

    def _add_filter(self, index: int, parent: int, handle: int, options: bytes) -> None:
        info = FILTER_PRIORITY << 16 | _ALL_PROTOCOLS
        attributes = _text(_KIND, "u32") + _attr(_OPTIONS, options)
        self._change(_message(_FILTER + _NEW, _CREATE | _EXCL, index, handle, parent, info, attributes))

    # The wire

    def _change(self, message: bytes, absent: bool = False) -> bool:
        """False when what is meant is not there and that was to be expected (`absent`)."""
        code = self._ask([message])[0][0]
        if code and not (absent and code in (errno.ENOENT, errno.EINVAL, errno.ENODEV)):  # EINVAL: its qdisc is gone as well
            raise HostError(f"traffic control: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
        return not code

    def _dump(self, what: int, index: int, parent: int = 0) -> list[bytes]:
        code, messages = self._ask([_message(what + _GET, _DUMP, index, parent=parent)])[0]
        if code and code not in (errno.ENODEV, errno.EINVAL, errno.ENOENT):  # no such device or qdisc: it has none of them
            raise HostError(f"traffic control: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
        return messages

    def _ask(self, messages: Sequence[bytes]) -> list[Answer]:
        answers: list[Answer] = []
        for at in range(0, len(messages), _BATCH):
            answers += self._exchange(messages[at : at + _BATCH])
        return answers

    def _exchange(self, messages: Sequence[bytes]) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(messages)
        datagram = b"".join(message[:8] + struct.pack("=I", first + i) + message[12:] for i, message in enumerate(messages))
        collected: list[list[bytes]] = [[] for _ in messages]
        codes: list[int | None] = [None] * len(messages)
        left = len(messages)
        try:
            self._socket.send(datagram)
            while left:
                for kind, sequence, message in _messages(self._socket.recv(1 << 17)):
                    i = sequence - first
                    if not 0 <= i < len(messages):
                        continue  # the rest of an answer whose reader gave up
                    if kind in (_ERROR, _DONE):
                        left -= codes[i] is None
                        codes[i] = -struct.unpack_from("=i", message, 16)[0]
                    else:
                        collected[i].append(message)
        except OSError as error:  # a timeout, or ENOBUFS
            raise HostError(f"netlink: {error or type(error).__name__}") from error
        return [(code or 0, found) for code, found in zip(codes, collected, strict=True)]


def load_marking_program(target: int) -> int | None:
    """File descriptor of a program that writes `target` into a packet's priority and matches; None where bpf is not allowed.

    skb->priority = target; return -1. Four instructions, no helpers, no maps. Source: linux/bpf.h, Documentation/bpf/standardization.
    """
    instructions = b"".join(
        (
            struct.pack("=BBhi", 0xB4, 0x02, 0, target),  # w2 = target
            struct.pack("=BBhi", 0x63, 0x21, _SKB_PRIORITY, 0),  # *(u32 *)(r1 + priority) = r2
            struct.pack("=BBhi", 0xB4, 0x00, 0, -1),  # w0 = -1: matched
            struct.pack("=BBhi", 0x95, 0, 0, 0),  # exit
        )
    )
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return None
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIQQIIQII", 3, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text), 0, 0, 0, 0, 0)
    )  # of type BPF_PROG_TYPE_SCHED_CLS, no log
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(ctypes.c_long(number), ctypes.c_long(5), attributes, ctypes.c_ulong(48))  # BPF_PROG_LOAD
    return None if found < 0 else found


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


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, sequence, data[at : at + length]
        at += (length + 3) & ~3


def _message(  # noqa: PLR0917  # the order of struct tcmsg
    kind: int, flags: int, index: int, handle: int = 0, parent: int = 0, info: int = 0, attributes: bytes = b""
) -> bytes:
    body = _TC.pack(0, 0, index, handle, parent, info) + attributes
    return _HEADER.pack(16 + len(body), kind, _REQUEST | _ACK | flags, 0, 0) + body


def _link_message(kind: int, flags: int, index: int, state: int, attributes: bytes) -> bytes:
    body = _IFINFO.pack(0, 0, index, state, state) + attributes  # flags to set, and which of them are meant
    return _HEADER.pack(16 + len(body), kind, _REQUEST | _ACK | flags, 0, 0) + body


def _attr(kind: int, data: bytes) -> bytes:
    return _ATTR.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attr(kind, text.encode() + b"\0")


def _match_all() -> bytes:
    selector = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0)  # terminal, one key
    return _attr(5, selector + bytes(16))  # value 0 under mask 0


def _htb_options(setting: ClassSetting) -> bytes:
    def ticks(size: int, rate: int) -> int:
        return min(_U32, size * 1_000_000_000 // rate // _TICK_NS)

    ethernet = 1  # link layer: said outright, the kernel needs no table to guess it from
    data = _HTB.pack(
        *(0, ethernet, 0, 0, 0, min(setting.rate, _U32)),
        *(0, ethernet, 0, 0, 0, min(setting.ceil, _U32)),
        *(ticks(setting.burst, setting.rate), ticks(setting.cburst, setting.ceil), setting.quantum, 0, setting.prio),
    )
    options = _attr(1, data)
    if setting.rate > _U32:
        options += _attr(6, struct.pack("=Q", setting.rate))
    if setting.ceil > _U32:  # 34 Gbit/s
        options += _attr(7, struct.pack("=Q", setting.ceil))
    return _attr(_OPTIONS, options)


def _attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    found = {}
    while at + 4 <= len(data):
        length, kind = _ATTR.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _NESTED_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _class_of(message: bytes) -> HtbClass | None:
    _, _, _, handle, parent, leaf = _TC.unpack_from(message, 16)
    attributes = _attributes(message, 36)
    if not attributes.get(_KIND, b"").startswith(b"htb\0"):
        return None
    options = _attributes(attributes.get(_OPTIONS, b""))
    parameters = _HTB.unpack(options[1][: _HTB.size])
    rate64, ceil64 = options.get(6), options.get(7)
    statistics = _attributes(attributes.get(_STATS2, b""))
    basic, queue = statistics.get(1), statistics.get(3)
    _, backlog, dropped, _, overlimits = (None,) * 5 if queue is None else _QUEUE.unpack_from(queue)
    return HtbClass(
        handle=handle,
        parent=parent,
        leaf=leaf,
        rate=parameters[5] if rate64 is None else struct.unpack("=Q", rate64)[0],
        ceil=parameters[11] if ceil64 is None else struct.unpack("=Q", ceil64)[0],
        quantum=parameters[14],
        level=parameters[15],
        prio=parameters[16],
        sent_bytes=None if basic is None else struct.unpack_from("=Q", basic)[0],
        dropped=dropped,
        overlimits=overlimits,
        backlog_bytes=backlog,
    )


def _ours(message: bytes, kind: str) -> tuple[int, dict[int, bytes]] | None:
    """Handle and options of a filter of our priority and this kind."""
    _, _, _, handle, _, info = _TC.unpack_from(message, 16)
    attributes = _attributes(message, 36)
    if info >> 16 != FILTER_PRIORITY or attributes.get(_KIND, b"").rstrip(b"\0").decode() != kind:
        return None
    return handle, _attributes(attributes.get(_OPTIONS, b""))


def _entry_of(message: bytes) -> Entry | None:
    ours = _ours(message, "u32")
    if ours is None or 5 not in ours[1]:
        return None  # somebody else's, or only the hash table
    handle, options = ours
    target = struct.unpack("=I", options[1])[0] if 1 in options else 0
    return Entry(handle=handle, target=target, indev=options.get(8, b"").rstrip(b"\0").decode())


def _redirect_of(message: bytes) -> Redirect | None:
    target = 0
    ours = _ours(message, "bpf")
    if ours is not None:
        name = ours[1].get(7, b"").rstrip(b"\0").decode()
        target = int(name.removeprefix(_PROGRAM_NAME), 16) if name.startswith(_PROGRAM_NAME) else 0
        actions = ours[1].get(1, b"")
    else:
        ours = _ours(message, "u32")
        actions = b"" if ours is None else ours[1].get(7, b"")
    action = _attributes(_attributes(actions).get(1, b""))
    if not action.get(1, b"").startswith(b"mirred\0"):
        return None
    return Redirect(to=_MIRRED.unpack_from(_attributes(action.get(2, b"")).get(2, bytes(_MIRRED.size)))[6], target=target)
