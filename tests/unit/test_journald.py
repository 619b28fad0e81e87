"""Log lines in the journal's native protocol: what arrives on its socket, byte for byte, and when it is used at all."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.journald import MAX_LINE_BYTES, MAX_VALUE_BYTES, JournalSender, encode_fields, fields_of, is_journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "journal"))
        server.settimeout(5)
        yield server


def decode(data: bytes) -> dict[str, str]:
    """The protocol's reading side, as journald does it."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, data = rest[8 : 8 + size], rest[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        else:
            data = rest
        fields[name.decode()] = value.decode()
    return fields


def test_a_line_has_its_fields_and_a_message_that_repeats_them(journal: socket.socket) -> None:
    sender = JournalSender("tidegate-agent", journal.getsockname())
    assert sender.send(
        {"event": "VM quarantined", "level": "warning", "vm": "web-1", "values": {"a": 1}, "text": "two\nlines", "flag": True}
    )
    sender.close()
    assert decode(journal.recv(1 << 20)) == {
        "MESSAGE": 'VM quarantined vm=web-1 values={"a":1} text=two\nlines flag=true',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "tidegate-agent",
        "TIDEGATE_EVENT": "VM quarantined",
        "TIDEGATE_VM": "web-1",
        "TIDEGATE_VALUES": '{"a":1}',
        "TIDEGATE_TEXT": "two\nlines",
        "TIDEGATE_FLAG": "true",
    }


@pytest.mark.parametrize("key", ["vm id", "größe", "a" * 100, "x=y", "new\nline"])
def test_any_key_becomes_a_name_that_the_journal_takes(key: str) -> None:
    names = fields_of({"event": "x", key: 1}, "t").keys()
    assert all(name.isascii() and name.replace("_", "").isalnum() and name[0].isupper() and len(name) <= 64 for name in names)


def test_long_lines_are_cut() -> None:
    data = encode_fields(fields_of({"event": "x", **{f"k{n}": "v" * 20_000 for n in range(50)}}, "t"))
    assert len(data) <= MAX_LINE_BYTES
    assert len(decode(data)["TIDEGATE_K0"]) == MAX_VALUE_BYTES


def test_only_the_journal_s_own_stream_counts(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as file:
        found = os.fstat(file.fileno())
        assert is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(file.fileno(), {})


SCRIPT = """
import logging, sys
import shared.journald
shared.journald.JournalSender.__init__.__defaults__ = (sys.argv[1],)
from shared.logging import configure
import structlog
configure("info", program="tidegate-agent")
structlog.get_logger().info("ready", vms=3, token="t0p")
logging.getLogger("library").warning("odd %s", "thing")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("broke")
"""


def test_a_process_under_systemd_writes_there_and_nothing_to_stderr(journal: socket.socket, tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w+") as stderr:
        found = os.fstat(stderr.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([sys.executable, "-c", SCRIPT, journal.getsockname()], env=env, stderr=stderr, check=True, timeout=60)
        stderr.seek(0)
        assert stderr.read() == ""
    ready, foreign, broke = (decode(journal.recv(1 << 20)) for _ in range(3))
    assert (ready["MESSAGE"], ready["TIDEGATE_VMS"], ready["TIDEGATE_TOKEN"]) == ("ready vms=3 token=[redacted]", "3", "[redacted]")
    assert foreign["MESSAGE"].startswith("odd thing") and foreign["PRIORITY"] == "4" and foreign["TIDEGATE_LOGGER"] == "library"
    assert "ZeroDivisionError" in broke["TIDEGATE_EXCEPTION"]


def test_a_journal_that_is_gone_leaves_the_lines_on_stderr(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w+") as stderr:
        found = os.fstat(stderr.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "nobody")], env=env, stderr=stderr, check=True, timeout=60)
        stderr.seek(0)
        lines = stderr.read().splitlines()
    assert [text for line in lines for text in ("ready", "odd thing", "broke") if f'"{text}' in line] == ["ready", "odd thing", "broke"]
