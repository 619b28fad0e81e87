"""The journal's native protocol: one datagram per log line with named fields, so that `journalctl TIDEGATE_VM=...` finds it.

A field is NAME=value and a newline, or, where the value holds newlines, NAME, a newline, its length as 64 bits little-endian, the value
and a newline. Names are upper case letters, digits and _, and do not begin with _. Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec

SOCKET: Final = "/run/systemd/journal/socket"
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
PREFIX: Final = "TIDEGATE_"
# A datagram must fit the socket's send buffer (net.core.wmem_default, 208 KiB); what is longer is cut, never lost.
MAX_VALUE_BYTES: Final = 16 * 1024
MAX_LINE_BYTES: Final = 128 * 1024
_FOREIGN: Final = re.compile(r"[^A-Z0-9_]")


def is_journal(descriptor: int, env: Mapping[str, str]) -> bool:
    """Is this descriptor (stderr) the journal's stream, as JOURNAL_STREAM says (systemd.exec(5))? A redirected one is not."""
    device, _, inode = env.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def fields_of(event: Mapping[str, Any], identifier: str) -> dict[str, str]:
    """A log line's fields: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, and each key as TIDEGATE_<KEY>.

    The message repeats the values in the way of `key=value`: who reads `journalctl -u` sees them without asking for fields.
    """
    rest = {key: _text(value) for key, value in event.items() if key not in ("event", "level", "timestamp", "exception")}
    message = " ".join([str(event.get("event", "")), *(f"{key}={value}" for key, value in rest.items() if value)])
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(PRIORITIES.get(str(event.get("level", "info")), 6)),
        "SYSLOG_IDENTIFIER": identifier,
        f"{PREFIX}EVENT": str(event.get("event", "")),
    }
    if "exception" in event:
        fields[f"{PREFIX}EXCEPTION"] = _text(event["exception"])
    return fields | {PREFIX + _FOREIGN.sub("_", key.upper())[:55]: value for key, value in rest.items()}


def encode_fields(fields: Mapping[str, str]) -> bytes:
    """The datagram."""
    parts, left = [], MAX_LINE_BYTES
    for name, text in fields.items():
        value = text.encode("utf-8", "replace")[:MAX_VALUE_BYTES]
        part = b"%s=%s\n" % (name.encode(), value)
        if b"\n" in value:
            part = b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
        if len(part) > left:
            continue
        left -= len(part)
        parts.append(part)
    return b"".join(parts)


class JournalSender:
    """Sends lines to journald. `address`: its socket."""

    def __init__(self, identifier: str, address: str = SOCKET) -> None:
        self._identifier, self._address = identifier, address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, event: Mapping[str, Any]) -> bool:
        """False when the journal does not take it: then the line belongs on stderr."""
        try:
            self._socket.sendto(encode_fields(fields_of(event, self._identifier)), self._address)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=repr).decode()
