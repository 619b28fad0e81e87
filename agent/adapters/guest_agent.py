"""Reading a file in a guest through QEMU's guest agent (guest-file-open, -read, -close), by libvirt. Read-only.

Every answer is foreign input: decoded into a fixed shape, the content bounded. A handle whose close failed is closed before the next
open, or a guest that is often slow would collect open files. libvirt allows a silent agent 5 s for the handshake that precedes a command
and TIMEOUT_S for the command itself; after the first silence of a read, nothing more is asked.
Source: QEMU's qga/qapi-schema.json.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from agent.adapters.libvirt_connection import LibvirtConnection
from shared.errors import HostError, Refusal

TIMEOUT_S: Final = 2  # a healthy agent takes 10 to 50 ms
MOST_BYTES: Final = 32_768  # /proc/vmstat has 4 KiB
_Shape = TypeVar("_Shape")


class _Opened(msgspec.Struct, frozen=True):
    handle: int = msgspec.field(name="return")


class _Content(msgspec.Struct, frozen=True):
    encoded: Annotated[str, Meta(max_length=2 * MOST_BYTES)] = msgspec.field(name="buf-b64")


class _Read(msgspec.Struct, frozen=True):
    content: _Content = msgspec.field(name="return")


class LibvirtGuestAgent:
    """Implements GuestAgent. One caller at a time."""

    def __init__(self, connection: LibvirtConnection) -> None:
        self._connection = connection
        self._left_open: dict[str, int] = {}  # VM -> handle; bounded by the VMs that were asked

    def read_file(self, vm_id: str, path: str) -> bytes:
        self._close(vm_id, self._left_open.pop(vm_id, None))
        opened = self._ask(vm_id, "guest-file-open", {"path": path, "mode": "r"})
        handle = _decode(opened, _Opened).handle
        self._left_open[vm_id] = handle
        answer = self._ask(vm_id, "guest-file-read", {"handle": handle, "count": MOST_BYTES})
        self._close(vm_id, self._left_open.pop(vm_id))
        try:
            return base64.b64decode(_decode(answer, _Read).content.encoded, validate=True)[:MOST_BYTES]
        except binascii.Error as error:
            raise HostError(f"guest agent: not base64: {error}") from error

    def _close(self, vm_id: str, handle: int | None) -> None:
        """A handle that the agent does not know any more (it was restarted) is closed. Raises HostError when the agent is silent."""
        if handle is None:
            return
        try:
            self._ask(vm_id, "guest-file-close", {"handle": handle})
        except HostError as error:
            if "has not been found" not in str(error):  # qemu-ga: handle '1000' has not been found
                self._left_open[vm_id] = handle
                raise
        except Refusal:  # the VM is gone or its agent was taken away, and the handle with it
            return

    def _ask(self, vm_id: str, command: str, arguments: dict[str, str | int]) -> str:
        import libvirt_qemu  # noqa: PLC0415  # comes with libvirt-python, which only hosts with libvirt have

        text = msgspec.json.encode({"execute": command, "arguments": arguments}).decode()

        def run(connection: Any) -> str:
            return str(libvirt_qemu.qemuAgentCommand(connection.lookupByUUIDString(vm_id), text, TIMEOUT_S, 0))

        return self._connection.call(run)


def _decode(answer: str, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(answer, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HostError(f"guest agent: unexpected answer: {error}") from error
