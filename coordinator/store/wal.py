"""Write-ahead log of agents' frames: what makes an acknowledgement true.

Append-only segments of (host, boot, sequence, frame) records, each with a CRC. `append` buffers in memory and gives a token;
`sync` writes and fsyncs everything so far (call it from one thread, in groups). A segment is named by its first token and opens
with the table of highest sequences, so trimming old segments never forgets what was already counted. Invariants: a record is
durable once `sync` returned a token beyond its own; a torn tail loses only what was never synced; total size is bounded. A `sync` that
failed (disk full) left its records in memory: the next one cuts what it had begun off the disk and writes them anew, in a new segment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from shared.errors import HostError
from shared.units import GIB, MIB

MAGIC: Final = b"TGWAL1\0\0"
RECORD: Final = struct.Struct(">II")  # body length, CRC-32 of the body
MAX_RECORD_BYTES: Final = 8 * MIB  # a frame is at most 4 MiB
_SEGMENT = re.compile(r"^(\d{20})\.wal$")


class WalFull(HostError):
    """The log holds as much as it may. Nothing was written; trim, then try again."""


class WalRecord(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """One logged frame. The token is its place in the log."""

    host_id: str
    boot_id: str
    sequence: int
    frame: bytes


class _Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """Highest sequence by (host, boot) of everything logged before this segment."""

    streams: list[tuple[str, str, int]]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(WalRecord | _Checkpoint)


class Wal:
    """The log in one folder, opened by one process. Raises HostError when the folder cannot be used."""

    def __init__(self, folder: Path, *, max_bytes: int = 2 * GIB, segment_bytes: int = 64 * MIB, boots_per_host: int = 16) -> None:
        if not 4096 <= segment_bytes <= max_bytes:
            raise ValueError(f"segment_bytes {segment_bytes}: allowed 4096 to max_bytes ({max_bytes})")
        self.max_bytes = max_bytes
        self.damaged_bytes = 0  # bytes after the last good record of a segment, found when opening
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._boots_per_host = boots_per_host
        self._lock = threading.Lock()  # guards the buffer; held for moments
        self._file_lock = threading.Lock()  # guards the file; held for an fsync
        self._buffer: list[tuple[bytes, str, str, int]] = []
        self._bytes = 0  # on disk and in the buffer
        self._high: dict[tuple[str, str], int] = {}  # of durable records only: a torn one must be accepted again
        self._next = 0
        self._file: BinaryIO | None = None
        self._current = 0
        self._begun = False  # a write failed: what follows the last durable record on disk is to be cut off
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._segments = self._scan()
            self._bytes = sum(self._segments.values())
        except OSError as error:
            raise HostError(f"log folder {folder}: {error}") from error
        self._durable = self._next

    def append(self, host_id: str, boot_id: str, sequence: int, frame: bytes) -> int:
        """Buffer one record; its token. Raises WalFull."""
        body = _encode(WalRecord(host_id, boot_id, sequence, frame))
        size = RECORD.size + len(body)
        with self._lock:
            if self._bytes + size > self.max_bytes:
                raise WalFull(f"log {self._folder} holds {self._bytes} bytes: allowed {self.max_bytes}")
            self._buffer.append((RECORD.pack(len(body), zlib.crc32(body)) + body, host_id, boot_id, sequence))
            self._bytes += size
            token = self._next
            self._next += 1
            return token

    def sync(self) -> int:
        """Write and fsync all appended so far; every token below the result is durable. Raises HostError (disk full, I/O)."""
        with self._file_lock:
            with self._lock:
                records, self._buffer = self._buffer, []
                upto = self._next
            if not records:
                return self._durable
            chunk = b"".join(record[0] for record in records)
            try:
                self._cut_off_begun()
                file = self._writable(upto - len(records))
                file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                # what reached the disk is unknown, and after a failed fsync not even another one would tell: nothing of it counts
                self._begun = True
                failed, self._file = self._file, None
                if failed is not None:
                    with contextlib.suppress(OSError):  # it flushes once more, in vain
                        failed.close()
                with self._lock:
                    self._buffer = records + self._buffer
                raise HostError(f"log {self._folder}: {error.strerror or error}") from error
            self._segments[self._current] += len(chunk)
            with self._lock:
                for _, host_id, boot_id, sequence in records:
                    self._note(host_id, boot_id, sequence)
                self._durable = upto
            return upto

    def replay(self) -> Iterator[tuple[int, WalRecord]]:
        """Every durable record with its token, oldest first. Meant for the start, before the first append."""
        for first in sorted(self._segments):
            yield from ((token, record) for token, record, _ in self._read(first) if isinstance(record, WalRecord))

    def trim(self, before_token: int) -> None:
        """Delete segments that hold only tokens below `before_token`; the next sync starts a new segment.

        A frame logged before bucket k closed holds samples of buckets up to k+1 at most: note `next_token` when bucket k
        closes, and trim to that note once bucket k+1 is stored.
        """
        with self._file_lock:
            try:
                self._cut_off_begun()  # it might pass for the newest segment, and its head might not be on disk
            except OSError as error:
                raise HostError(f"log {self._folder}: {error.strerror or error}") from error
            self._close_segment()
            starts = sorted(self._segments)
            # The newest segment stays: it carries the table of highest sequences and, in its name, the next token.
            for first, following in itertools.pairwise(starts):
                if following <= before_token:
                    self._path(first).unlink(missing_ok=True)
                    with self._lock:
                        self._bytes -= self._segments.pop(first)

    def high_water(self) -> dict[tuple[str, str], int]:
        """Highest logged sequence by (host, boot), for the gateway's table at start."""
        with self._lock:
            return dict(self._high)

    def has_room(self, frame_bytes: int = 0) -> bool:
        """False when the log is within one large record of its bound: time to stop taking frames in."""
        with self._lock:
            return self._bytes + frame_bytes + self.max_bytes // 16 <= self.max_bytes

    @property
    def next_token(self) -> int:
        """Token that the next record will get."""
        return self._next

    @property
    def total_bytes(self) -> int:
        """Bytes on disk and in the buffer."""
        with self._lock:
            return self._bytes

    def close(self) -> None:
        """Sync and close. What a full disk does not take was never acknowledged."""
        with contextlib.suppress(HostError):
            self.sync()
        with self._file_lock:
            self._close_segment()

    def _cut_off_begun(self) -> None:
        """After a failed write: the disk holds the durable records again, and nothing after them."""
        if not self._begun:
            return
        # a segment is named by its first token: one that begins with the first record that is not durable holds none that is
        self._path(self._durable).unlink(missing_ok=True)
        with self._lock:
            self._bytes -= self._segments.pop(self._durable, 0)
        if self._segments:
            newest = max(self._segments)
            with self._path(newest).open("r+b") as file:
                file.truncate(self._segments[newest])
                os.fsync(file.fileno())
        self._begun = False

    def _note(self, host_id: str, boot_id: str, sequence: int) -> None:
        key = (host_id, boot_id)
        known = self._high.get(key)
        self._high[key] = sequence if known is None else max(sequence, known)
        if known is None:
            boots = [boot for host, boot in self._high if host == host_id]
            if len(boots) > self._boots_per_host:
                del self._high[host_id, boots[0]]

    def _writable(self, first: int) -> BinaryIO:
        """The open segment, or a new one whose first record will be `first`."""
        if self._file is not None and self._segments[self._current] < self._segment_bytes:
            return self._file
        self._close_segment()
        body = _encode(_Checkpoint([(host, boot, sequence) for (host, boot), sequence in self._high.items()]))
        head = MAGIC + RECORD.pack(len(body), zlib.crc32(body)) + body
        self._file = self._path(first).open("xb")
        self._file.write(head)
        _sync_folder(self._folder)
        self._current = first
        self._segments[first] = len(head)
        with self._lock:
            self._bytes += len(head)
        return self._file

    def _close_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:020d}.wal"

    def _scan(self) -> dict[int, int]:
        """Sizes of the segments found; learns the next token and the highest sequences. Empty ones (killed at birth) go."""
        segments: dict[int, int] = {}
        for path in sorted(self._folder.iterdir()):
            match = _SEGMENT.match(path.name)
            if match is None:
                continue
            first = self._next = int(match[1])
            good = 0
            for token, record, end in self._read(first):
                good = end
                if isinstance(record, WalRecord):
                    self._note(record.host_id, record.boot_id, record.sequence)
                    self._next = token + 1
                    continue
                for host_id, boot_id, sequence in record.streams:
                    self._note(host_id, boot_id, sequence)
            size = path.stat().st_size
            self.damaged_bytes += size - good
            if self._next == first:
                path.unlink()
            else:
                segments[first] = size
        return segments

    def _read(self, first: int) -> Iterator[tuple[int, WalRecord | _Checkpoint, int]]:
        """(token, record, offset of its end) up to the first bad one."""
        token = first
        with self._path(first).open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return
            while len(head := file.read(RECORD.size)) == RECORD.size:
                length, crc = RECORD.unpack(head)
                body = file.read(length) if length <= MAX_RECORD_BYTES else b""
                if len(body) != length or zlib.crc32(body) != crc:
                    return
                record = _decoder.decode(body)
                yield token, record, file.tell()
                token += isinstance(record, WalRecord)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
