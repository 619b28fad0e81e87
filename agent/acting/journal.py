"""The agent's journal on disk: one JSON line per entry with a CRC, in two files of bounded size; and the persisted control mode.

Line: eight hex digits of the CRC-32 of the JSON, a space, the JSON, a newline. Invariant: when `write` of an Intent returns, it survives a
power cut (fdatasync); other entries follow it to disk with the next one or with `close`. Reading stops being trusted line by line: a torn
tail or a damaged line is left out and counted, never fatal. When the file is full it becomes the older one, and the new one starts with
what must not be forgotten: the newest plan, outcomes nobody has heard, what is the owner's of each VM, and the intents that are still open.
How far back: a step takes about 1 kB (intent and outcome), so the older file alone holds the newest 8,000 steps, twice what an undo
remembers (agent.acting.undoing): a day of 100 VMs with 3 steps per VM and hour; 33 minutes at the guard's largest rate for a host.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from agent.acting.ownership import fold
from agent.events import Closed, Intent, JournalEntry, Owned, PlanAccepted, Shipped
from shared.errors import HostError
from shared.failpoint import hit
from shared.model import Mode

# Two files; read as a stream at start, in about a second.
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
# The longest entry is a PlanAccepted of 4096 ids of 128 characters.
MAX_LINE_BYTES: Final = 1024 * 1024

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(JournalEntry)


class Journal:
    """Append-only journal in `folder` (created). Not thread-safe: one writer."""

    def __init__(self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = folder / "journal.jsonl"
        self._older = folder / "journal.1.jsonl"
        self._max_file_bytes = max_file_bytes
        self.damaged_lines = 0
        self._plan: PlanAccepted | None = None
        self._open: dict[str, Intent] = {}
        self._unshipped: list[Closed] = []
        self._owned: dict[str, Owned] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for entry in self._read():
                self._note(entry)
            self._file = self._path.open("ab")
            if self._file.tell() and not self._path.read_bytes().endswith(b"\n"):
                self._file.write(b"\n")  # a torn tail must not swallow the next line
        except OSError as error:
            raise HostError(f"journal {folder}: {error}") from error

    def entries(self) -> list[JournalEntry]:
        """Everything readable, oldest first. Raises HostError when the disk fails."""
        return list(self.read())

    def read(self) -> Iterator[JournalEntry]:
        """The same, one by one: a full journal would take 40 MB of memory at once."""
        try:
            self._file.flush()
            yield from self._read()
        except OSError as error:
            raise HostError(f"journal {self._path}: {error}") from error

    def write(self, entry: JournalEntry) -> None:
        """Append; durable on return when it is an Intent. Raises HostError: then the step must not be submitted."""
        line = _line(entry)
        place = _failpoint(entry)
        if place:
            hit(f"{place}.before")
        try:
            if self._file.tell() + len(line) > self._max_file_bytes:
                self._rotate()
            self._file.write(line)
            self._file.flush()
            if isinstance(entry, Intent):
                os.fdatasync(self._file.fileno())
        except OSError as error:
            raise HostError(f"journal {self._path}: {error}") from error
        if place:
            hit(f"{place}.after")
        self._note(entry)

    def close(self) -> None:
        """Make everything durable and close."""
        with contextlib.closing(self._file):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _note(self, entry: JournalEntry) -> None:
        """Keep what a new file has to start with."""
        fold(self._owned, entry)
        if isinstance(entry, Owned):
            return
        if isinstance(entry, PlanAccepted):
            self._plan = entry
        elif isinstance(entry, Intent):
            self._open[entry.step.id] = entry
        elif isinstance(entry, Shipped):
            self._unshipped.clear()
        else:
            self._unshipped.append(entry)
            step_id = entry.outcome.step.id
            self._open.pop(step_id, None)
            for undo_id in [key for key, intent in self._open.items() if intent.undo_of == step_id]:
                del self._open[undo_id]

    def _rotate(self) -> None:
        hit("journal.rotate.before")
        self._file.close()
        # What must not be forgotten is on disk before the full file becomes the older one and the one before it goes: whenever this is
        # killed, every entry that counts is in one of the two.
        fresh = self._path.with_suffix(".new")
        kept: list[JournalEntry] = [] if self._plan is None else [self._plan]
        kept.extend(self._unshipped)
        # Behind the outcomes: they are older than what is believed now.
        kept.extend(msgspec.structs.replace(owned, foreign=()) for owned in self._owned.values())
        kept.extend(self._open.values())
        with fresh.open("wb") as file:
            file.write(b"".join(_line(entry) for entry in kept))
            file.flush()
            os.fsync(file.fileno())
        self._path.replace(self._older)
        hit("journal.rotate.between")
        fresh.replace(self._path)
        self._file = self._path.open("ab")
        _sync_folder(self._path.parent)
        hit("journal.rotate.after")

    def _read(self) -> Iterator[JournalEntry]:
        self.damaged_lines = 0
        for path in (self._older, self._path):
            if not path.exists():
                continue
            with path.open("rb") as file:
                for line in file:
                    entry = _parse(line)
                    if entry is not None:
                        yield entry
                    elif line.strip():
                        self.damaged_lines += 1


def read_journal(folder: Path) -> tuple[int, int]:
    """(entries, damaged lines) of a journal that another process may be writing; changes nothing. Raises HostError."""
    lines = []
    for name in ("journal.1.jsonl", "journal.jsonl"):
        try:
            lines += [line for line in (folder / name).read_bytes().splitlines(keepends=True) if line.strip()]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError(f"journal {folder / name}: {error.strerror}") from error
    damaged = sum(_parse(line) is None for line in lines)
    return len(lines) - damaged, damaged


def _line(entry: JournalEntry) -> bytes:
    body = _encode(entry)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _failpoint(entry: JournalEntry) -> str:
    if isinstance(entry, Intent):
        return "journal.undo" if entry.undo_of else "journal.intent"
    return "journal.closed" if isinstance(entry, Closed) else ""


def _parse(line: bytes) -> JournalEntry | None:
    if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    body = line[9:-1]
    try:
        if int(line[:8], 16) != zlib.crc32(body):
            return None
        entry: JournalEntry = _decoder.decode(body)
    except (ValueError, RecursionError, msgspec.DecodeError):
        return None
    return entry


class PersistedMode(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's pin and the coordinator's last order."""

    pinned: Mode | None = None
    ordered: Mode | None = None


class PersistedPause(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the kill switch."""

    by: tuple[str, ...] = ()


def save_mode(folder: Path, pinned: Mode | None, ordered: Mode | None) -> None:
    """Store both; when it returns they survive a power cut. Raises HostError."""
    _save(folder / "mode.json", PersistedMode(pinned=pinned, ordered=ordered))


def load_mode(folder: Path) -> PersistedMode:
    """What was stored; nothing stored = neither. A file that cannot be read as a mode pins OFF: in doubt, leave the host alone."""
    return _load(folder / "mode.json", PersistedMode(), PersistedMode(pinned=Mode.OFF))


def save_pause(folder: Path, by: tuple[str, ...]) -> None:
    """Store who holds the kill switch; when it returns it survives a power cut. Raises HostError."""
    _save(folder / "pause.json", PersistedPause(by=by))


def load_pause(folder: Path) -> tuple[str, ...]:
    """Who held it; nothing stored = nobody. A file that cannot be read means that the owner does: in doubt, leave the host alone."""
    return _load(folder / "pause.json", PersistedPause(), PersistedPause(by=("owner",))).by


_Stored = TypeVar("_Stored", PersistedMode, PersistedPause)


def _save(path: Path, what: PersistedMode | PersistedPause) -> None:
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("wb") as file:
            file.write(_encode(what))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise HostError(f"{path.stem} file {path}: {error}") from error


def _load(path: Path, nothing: _Stored, doubt: _Stored) -> _Stored:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(nothing))
    except FileNotFoundError:
        return nothing
    except msgspec.DecodeError:
        return doubt
    except OSError as error:
        raise HostError(f"{path.stem} file {path}: {error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
