"""What a check of the doctor finds: how bad it is, what it says, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum

import msgspec

from shared.config import AgentConfig


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    WARN = 1
    FAIL = 2


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found; `mend`: what to do about it, empty where nothing is to be done."""

    check: str
    level: Level
    says: str
    mend: str = ""


Check = Callable[[AgentConfig], Iterator[Finding]]


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, says=says)


def warn(check: str, says: str, mend: str = "") -> Finding:
    """The agent works, with less."""
    return Finding(check=check, level=Level.WARN, says=says, mend=mend)


def fail(check: str, says: str, mend: str) -> Finding:
    """The agent cannot do its work."""
    return Finding(check=check, level=Level.FAIL, says=says, mend=mend)
