"""The audit's chain: each row's SHA-256 covers the row before it, so no row can be changed, lost or put between unnoticed. Pure.

Canonical JSON: keys sorted, no spaces, UTF-8 (the spirit of RFC 8785; all numbers are integers). What a chain cannot show is the loss of
its newest rows: for that, note the newest hash elsewhere now and then (`tidegate audit verify` prints it) and verify against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

FIRST: Final = "0" * 64  # what the first row follows
PRUNE: Final = "audit prune"  # action of the row that says which rows were dropped


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One write, carried out or refused. `what` is JSON text without secrets; `result` is "ok" or the refusal's code."""

    time_ns: int  # of the real clock
    actor: str
    role: str
    how: str  # token:ID, certificate:NAME, cli, address:IP
    action: str
    target: str
    what: str
    status: int
    result: str
    request_id: str


class AuditRow(AuditEntry, frozen=True, kw_only=True):
    """An entry in its place."""

    sequence: int
    previous: str
    hash: str


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """The first row that is not what it was, or not where it was."""

    sequence: int
    why: str


def chained(entry: AuditEntry, sequence: int, previous: str) -> AuditRow:
    """The entry as row `sequence`, after the row whose hash is `previous`."""
    values = msgspec.structs.asdict(entry)
    return AuditRow(**values, sequence=sequence, previous=previous, hash=_hash(entry, sequence, previous))


def pruned(first: int, previous: str) -> str:
    """`what` of the row that says that all rows before `first` were dropped, the last of them with the hash `previous`."""
    return msgspec.json.encode({"first": first, "previous": previous}, order="sorted").decode()


class Walk:
    """Walks rows in their order, a page at a time. `tip` is (sequence, hash) of the last good one.

    Where the oldest rows were dropped for their number, the chain begins later, and a row of it says so: `end` wants to have seen it.
    """

    def __init__(self) -> None:
        self.tip = (0, FIRST)
        self.rows = 0
        self._owed: str | None = None

    def over(self, rows: Iterable[AuditRow]) -> Broken | None:
        """None = all of them follow the rows before them."""
        for row in rows:
            if self.rows == 0 and row.sequence > 1:
                self.tip, self._owed = (row.sequence - 1, row.previous), pruned(row.sequence, row.previous)
            after, previous = self.tip
            if row.sequence != after + 1:
                return Broken(sequence=after + 1, why=f"missing: row {row.sequence} follows row {after}")
            if row.previous != previous:
                return Broken(sequence=row.sequence, why="does not follow the row before it: that one was changed or replaced")
            if row.hash != _hash(row, row.sequence, row.previous):
                return Broken(sequence=row.sequence, why="was changed: its hash is not that of what it says")
            self.tip = (row.sequence, row.hash)
            self.rows += 1
            if row.action == PRUNE and row.what == self._owed:
                self._owed = None
        return None

    def end(self) -> Broken | None:
        """After the last row: None = nothing is missing before the first one."""
        return None if self._owed is None else Broken(sequence=1, why="is missing, and no row says that it was dropped for its age")


def _hash(entry: AuditEntry, sequence: int, previous: str) -> str:
    said = {name: getattr(entry, name) for name in AuditEntry.__struct_fields__} | {"sequence": sequence}
    return hashlib.sha256(previous.encode() + msgspec.json.encode(said, order="sorted")).hexdigest()
