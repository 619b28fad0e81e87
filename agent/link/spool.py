"""The spool: frames that the coordinator has not acknowledged, on disk, bounded. It and the acknowledgement are the no-loss guarantee.

Segment files `NUMBER.spool` (NUMBER = first sequence, 20 digits) hold records: sequence u64, length u32, CRC-32 of sequence, length and
frame u32, frame; big endian. Invariant: what `pending` yields is whole, in order and was appended; a torn tail (kill -9, power cut) ends
its segment, a damaged record is skipped with its segment's rest and counted; when full the oldest segment goes and the frames lost are
counted, never silently. fsync is batched (`sync`): a frame is lost by a power cut within that time, not by the death of the process.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from shared.errors import HostError

RECORD: Final = struct.Struct(">QII")
# Small against the smallest spool (1 MiB), so that dropping the oldest segment gives up an eighth at most.
SEGMENTS_WHEN_FULL: Final = 8
MAX_SEGMENT_BYTES: Final = 4 * 1024 * 1024
_NAME: Final = re.compile(r"^(\d{20})\.spool$")


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int
    first: int
    last: int  # highest sequence in it; first - 1 while empty
    count: int


class Spool:
    """Bounded spool in `folder` (created). Not thread-safe: one writer; `pending` may be interrupted by appends and trims."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = min(MAX_SEGMENT_BYTES, max_bytes // SEGMENTS_WHEN_FULL)
        self._segments: list[_Segment] = []
        self._file: BinaryIO | None = None
        self._dirty = False
        self.dropped_frames = 0
        self.damaged_segments = 0
        self.trimmed_to = -1
        self._least_next = 0  # numbers below may have been used by frames that damage took
        with _host_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()

    @property
    def next_sequence(self) -> int:
        """One more than the highest sequence ever appended, also when everything was trimmed since."""
        newest = self._segments[-1].last + 1 if self._segments else 0
        return max(newest, self.trimmed_to + 1, self._least_next)

    @property
    def frames(self) -> int:
        """Frames kept and not acknowledged (those of a partly trimmed segment estimated by sequence)."""
        total = 0
        for segment in self._segments:
            total += segment.count if segment.first > self.trimmed_to else min(segment.count, segment.last - self.trimmed_to)
        return total

    @property
    def bytes_used(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    def append(self, sequence: int, frame: bytes) -> None:
        """Add one frame; sequences rise. Drops the oldest segments when full. ValueError on our own misuse, HostError on a failing disk."""
        if sequence < self.next_sequence:
            raise ValueError(f"sequence {sequence}: {self.next_sequence} or more expected")
        size = RECORD.size + len(frame)
        if size > self._max_bytes:
            raise ValueError(f"frame of {len(frame)} bytes does not fit a spool of {self._max_bytes}")
        with _host_errors(self._folder):
            while self._segments and self.bytes_used + size > self._max_bytes:
                self._drop_oldest()
            if self._file is None or self._segments[-1].size + size > self._segment_bytes:
                self._open_segment(sequence)
            assert self._file is not None
            segment = self._segments[-1]
            self._file.write(_record(sequence, frame))
            self._file.flush()
            segment.size += size
            segment.last, segment.count = sequence, segment.count + 1
            self._dirty = True

    def trim(self, sequence: int) -> None:
        """Everything up to `sequence` is durable elsewhere. Whole segments are deleted; the mark is kept for the rest."""
        if sequence <= self.trimmed_to:
            return
        self.trimmed_to = sequence
        with _host_errors(self._folder):
            while self._segments and self._segments[0].last <= sequence:
                if len(self._segments) == 1:
                    # The numbering must survive an empty spool: the mark goes to disk before the last segment does.
                    self._save_mark()
                self._delete_oldest()

    def pending(self, after_sequence: int = -1) -> Iterator[tuple[int, bytes]]:
        """(sequence, frame) of everything kept above `after_sequence` and above what was trimmed, in order."""
        with _host_errors(self._folder):
            for segment in list(self._segments):
                if segment.last <= max(after_sequence, self.trimmed_to):
                    continue
                try:
                    records, _ = _read(segment.path)
                except FileNotFoundError:
                    continue  # trimmed or dropped while we were iterating
                for sequence, frame in records:
                    if sequence > max(after_sequence, self.trimmed_to):
                        yield sequence, frame

    def sync(self) -> None:
        """Make appended frames and the trim mark survive a power cut; call it about once a second."""
        with _host_errors(self._folder):
            if self._dirty and self._file is not None:
                os.fdatasync(self._file.fileno())
            self._dirty = False

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        with _host_errors(self._folder):
            self._save_mark()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _recover(self) -> None:
        self._load_mark()
        numbered = sorted((int(match[1]), path) for path in self._folder.iterdir() if (match := _NAME.match(path.name)))
        highest = -1
        for first, path in numbered:
            records, whole_bytes = _read(path)
            kept = [sequence for sequence, _ in records if sequence > highest]
            lost_bytes = path.stat().st_size - whole_bytes
            if lost_bytes:
                self.damaged_segments += 1
                # No record is shorter than its header, so this passes every number that the lost bytes can have held.
                self._least_next = max(self._least_next, (kept[-1] + 1 if kept else first) + lost_bytes // RECORD.size)
                os.truncate(path, whole_bytes)
            if not kept or kept[-1] <= self.trimmed_to:
                self._least_next = max(self._least_next, kept[-1] + 1 if kept else first)
                path.unlink()
                continue
            highest = kept[-1]
            self._segments.append(_Segment(path, whole_bytes, kept[0], highest, len(kept)))
        self._save_mark()

    def _open_segment(self, sequence: int) -> None:
        if self._file is not None:
            os.fdatasync(self._file.fileno())
            self._file.close()
        path = self._folder / f"{sequence:020d}.spool"
        self._file = path.open("wb")
        self._segments.append(_Segment(path, 0, sequence, sequence - 1, 0))

    def _drop_oldest(self) -> None:
        segment = self._segments[0]
        self.dropped_frames += segment.count if segment.first > self.trimmed_to else max(0, segment.last - self.trimmed_to)
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        segment = self._segments.pop(0)
        if not self._segments and self._file is not None:
            self._file.close()
            self._file = None
        segment.path.unlink(missing_ok=True)

    def _load_mark(self) -> None:
        try:
            trimmed, least = (self._folder / "trimmed").read_text(encoding="ascii").split()
            self.trimmed_to, self._least_next = int(trimmed), int(least)
        except (FileNotFoundError, ValueError):
            # Too low a mark only means sending acknowledged frames again; the coordinator knows them by sequence.
            self.trimmed_to, self._least_next = -1, 0

    def _save_mark(self) -> None:
        fresh = self._folder / "trimmed.new"
        with fresh.open("w", encoding="ascii") as file:
            file.write(f"{self.trimmed_to} {self.next_sequence}")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._folder / "trimmed")


def _record(sequence: int, frame: bytes) -> bytes:
    head = struct.pack(">QI", sequence, len(frame))
    return head + struct.pack(">I", zlib.crc32(frame, zlib.crc32(head))) + frame


def _read(path: Path) -> tuple[list[tuple[int, bytes]], int]:
    """Whole records of a segment with rising sequences, and the bytes they take; stops at the first that is torn or damaged."""
    data = path.read_bytes()
    records: list[tuple[int, bytes]] = []
    at = 0
    while len(data) - at >= RECORD.size:
        sequence, length, crc = RECORD.unpack_from(data, at)
        frame = data[at + RECORD.size : at + RECORD.size + length]
        if len(frame) != length or zlib.crc32(frame, zlib.crc32(data[at : at + 12])) != crc:
            break
        if records and sequence <= records[-1][0]:
            break
        records.append((sequence, frame))
        at += RECORD.size + length
    return records, at


@contextlib.contextmanager
def _host_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"spool {folder}: {error}") from error
