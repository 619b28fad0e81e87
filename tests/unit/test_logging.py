"""Log lines: one JSON object each, complete, without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared.logging import LEVELS, REDACTED, configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_one_json_object_per_line() -> None:
    out = io.StringIO()
    configure("info", out)
    structlog.get_logger().info("step verified", vm_id="web-1", value=2000, text="two\nlines", odd=object())
    (line,) = lines(out)
    assert (line["event"], line["level"], line["vm_id"], line["value"], line["text"]) == (
        "step verified",
        "info",
        "web-1",
        2000,
        "two\nlines",
    )
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("level", list(LEVELS))
def test_level_is_a_floor(level: str) -> None:
    out = io.StringIO()
    configure(level, out)
    log = structlog.get_logger()
    for name in LEVELS:
        getattr(log, name)(name)
    assert [line["level"] for line in lines(out)] == [name for name in LEVELS if LEVELS[name] >= LEVELS[level]]


def test_secrets_never_leave() -> None:
    out = io.StringIO()
    configure("info", out)
    structlog.get_logger().info("x", api_token="t0p", headers={"Authorization": "Bearer t0p", "Host": "h"}, items=[{"password": "t0p"}])
    logging.getLogger("library").warning("y", extra={"private_key": "t0p"})
    assert "t0p" not in out.getvalue()
    assert lines(out)[0]["headers"] == {"Authorization": REDACTED, "Host": "h"}


def test_library_lines_take_the_same_way() -> None:
    out = io.StringIO()
    configure("info", out)
    logging.getLogger("websockets.server").warning("handshake %s", "failed")
    logging.getLogger("websockets.server").info("chatter")
    (line,) = lines(out)
    assert (line["event"], line["logger"], line["level"]) == ("handshake failed", "websockets.server", "warning")


def test_exceptions_are_data() -> None:
    out = io.StringIO()
    configure("info", out)
    try:
        raise ValueError("bad frame")
    except ValueError:
        structlog.get_logger().exception("dropped")
    (line,) = lines(out)
    assert line["exception"][0]["exc_value"] == "bad frame"


def test_a_terminal_gets_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    configure("info", out)
    structlog.get_logger().info("step verified", token="t0p")
    assert "step verified" in out.getvalue()
    assert "t0p" not in out.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())
