"""What applications told, until history holds it: what makes the API's answer to `POST /api/v1/signals` true.

A write-ahead log of its own, so that no application can fill the agents'. Each closing of buckets leaves a mark in it: at a start, buckets
that ended LATE_BUCKETS before the last mark are settled in history and left out; of the others the log holds every reading. For that it
reaches back over LOG_CLOSINGS: a bucket is told of from AHEAD_S before it begins, and may be stored anew until LATE_BUCKETS after its end.
Invariants: what `sync` returned for is read back after a kill; nothing is told twice to the worse, as telling again changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from coordinator.demand.signals import LATE_BUCKETS, SignalReading
from coordinator.store.wal import Wal
from shared.errors import Refusal
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, MIB

LOG_BYTES: Final = 256 * MIB  # 10,000 VMs that tell two signals every 15 seconds need 140
LOG_CLOSINGS: Final = LATE_BUCKETS + 5
_SOURCE: Final = "signals"


class _Told(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    readings: tuple[SignalReading, ...]


class _Closed(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    start_s: int


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Told | _Closed)


class SignalLog:
    """One folder, opened by one process. Raises HostError where the disk refuses. `replay` belongs before the first `append`."""

    def __init__(self, folder: Path, *, max_bytes: int = LOG_BYTES) -> None:
        self._wal = Wal(folder, max_bytes=max_bytes, segment_bytes=min(16 * MIB, max_bytes))
        self._marks: deque[int] = deque(maxlen=LOG_CLOSINGS)

    def append(self, readings: Sequence[SignalReading]) -> None:
        """Note readings; they are durable once a later `sync` has returned. Refusal(RATE_LIMITED): the log holds as much as it may."""
        frame = _encode(_Told(tuple(readings)))
        if not self._wal.has_room(len(frame)):  # what it keeps back is for the marks
            detail = f"signals wait for history in a log of at most {self._wal.max_bytes} bytes, which is full; try again in five minutes"
            raise Refusal(RefusalCode.RATE_LIMITED, detail)
        self._wal.append(_SOURCE, "", self._wal.next_token, frame)

    def sync(self) -> None:
        """Write and fsync all that was appended."""
        self._wal.sync()

    def close_bucket(self, start_s: int) -> int:
        """The buckets up to this one are being stored; a place to give to `settled` when they are."""
        self._marks.append(self._wal.next_token)
        self._wal.append(_SOURCE, "", self._wal.next_token, _encode(_Closed(start_s)))
        return self._marks[0] if len(self._marks) == LOG_CLOSINGS else 0

    def settled(self, place: int) -> None:
        """Cut what is no longer needed; `place` is what the last `close_bucket` gave."""
        self._wal.sync()
        self._wal.trim(place)

    def replay(self) -> Iterator[SignalReading]:
        """Every reading of buckets that history may not hold yet, in the order told."""
        closed = (frame.start_s for frame in self._frames() if isinstance(frame, _Closed))
        oldest_s = max(closed, default=0) - LATE_BUCKETS * BUCKET_S
        for frame in self._frames():
            if isinstance(frame, _Told):
                yield from (reading for reading in frame.readings if reading.at_s >= oldest_s)

    @property
    def total_bytes(self) -> int:
        """Bytes on disk and not yet there."""
        return self._wal.total_bytes

    def close(self) -> None:
        """Sync and close."""
        self._wal.close()

    def _frames(self) -> Iterator[_Told | _Closed]:
        return (_decoder.decode(record.frame) for _, record in self._wal.replay())
