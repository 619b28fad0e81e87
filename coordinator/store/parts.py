"""A table as a folder of Parquet parts by UTC day: small writes, bounded number of files, newest write wins.

A part is `<day>.<number>.<level>.parquet`. Level 0 is one write; after `FAN_IN` of them the day's level-0 parts become one level-1
part; once a newer day is being written, the older day becomes a single level-2 part: each row is rewritten twice, not once an
hour. Rows are replaced by reading parts in order of number. Invariants: a part appears whole (temporary file, fsync, rename, fsync of the
folder) or not at all; a kill between writing a merged part and deleting its members leaves the same rows twice, which reads the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import HostError

FAN_IN: Final = 12  # level-0 parts per merge: an hour of buckets
DAY_S: Final = 86_400
_PART = re.compile(r"^(\d{4}-\d{2}-\d{2})\.(\d{8})\.([012])\.parquet$")
_TMP = ".tmp"


@dataclass(frozen=True, order=True)
class Part:
    """One file. The order is the order of writing within a day."""

    day: str
    number: int
    level: int

    @property
    def name(self) -> str:
        return f"{self.day}.{self.number:08d}.{self.level}.parquet"


class PartTable:
    """The parts of one table; one thread at a time.

    `arrange` sorts and de-duplicates rows when parts merge (oldest part first in its input).
    """

    def __init__(
        self,
        folder: Path,
        arrange: Callable[[Any], Any],
        *,
        row_group_rows: int,
        retention_days: int,
        max_bytes: int,
        dictionary: list[str],
    ) -> None:
        if not 1 <= retention_days <= 3660:
            raise ValueError(f"retention_days {retention_days}: allowed 1 to 3660")
        self._folder, self._arrange, self._row_group_rows = folder, arrange, row_group_rows
        self._retention_days, self._max_bytes, self._dictionary = retention_days, max_bytes, dictionary
        self.days_dropped = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"*{_TMP}"):
                left.unlink()
            found = {path: _PART.match(path.name) for path in folder.iterdir()}
            self._sizes = {
                Part(match[1], int(match[2]), int(match[3])): path.stat().st_size for path, match in found.items() if match is not None
            }
        except OSError as error:
            raise HostError(f"history folder {folder}: {error}") from error
        self._next = 1 + max((part.number for part in self._sizes), default=0)

    def append(self, day: str, table: Any, *, bulk: bool = False) -> None:
        """Durably add rows of one UTC day, then merge and drop what is due. `bulk`: many buckets at once, merged already."""
        newer = any(part.day > day for part in self._sizes)
        first = not any(part.day == day for part in self._sizes)
        level = (2 if first else 1) if bulk else 0
        self._write(Part(day, self._next, level), self._arrange(table) if bulk else table)
        self._next += 1
        if first and not newer:
            for older in sorted({part.day for part in self._sizes if part.day < day}):
                self._merge(older, 2, (0, 1, 2))
            self._drop(day)
        elif sum(part.day == day and part.level == 0 for part in self._sizes) >= FAN_IN:
            self._merge(day, 1, (0,))

    def parts(self, since_day: str = "", until_day: str = "9999") -> list[Part]:
        """Parts of these days, in the order in which they must be read."""
        return sorted(part for part in self._sizes if since_day <= part.day <= until_day)

    def read(self, part: Part, columns: list[str], filters: Any = None) -> Any:
        """Columns of one part as a pyarrow Table."""
        return pq.read_table(
            self._folder / part.name, columns=columns, read_dictionary=self._dictionary, filters=filters, partitioning=None
        )

    def newest(self, column: str) -> int | None:
        """Largest value of an int64 column, from the statistics of the newest day."""
        if not self._sizes:
            return None
        day = max(part.day for part in self._sizes)
        return max(self._largest(part, column) for part in self._sizes if part.day == day)

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self._sizes.values())

    def _largest(self, part: Part, column: str) -> int:
        metadata = pq.read_metadata(self._folder / part.name)
        index = metadata.schema.to_arrow_schema().get_field_index(column)
        return max(int(metadata.row_group(group).column(index).statistics.max) for group in range(metadata.num_row_groups))

    def _merge(self, day: str, level: int, levels: tuple[int, ...]) -> None:
        members = [part for part in self.parts(day, day) if part.level in levels]
        if len(members) < 2:
            return
        tables = [pq.read_table(self._folder / part.name, partitioning=None) for part in members]
        merged = self._arrange(pa.concat_tables(tables, promote_options="default"))
        target = Part(day, members[-1].number, level)
        self._write(target, merged)
        for part in members:
            if part != target:
                (self._folder / part.name).unlink()
                del self._sizes[part]

    def _drop(self, newest_day: str) -> None:
        """Days past retention, then the oldest days while the table is over its size; the newest day always stays."""
        oldest_kept = day_of(day_start_s(newest_day) - self._retention_days * DAY_S)
        for day in sorted({part.day for part in self._sizes} - {newest_day}):
            if day >= oldest_kept and self.total_bytes <= self._max_bytes:
                return
            self.days_dropped += 1
            for part in self.parts(day, day):
                (self._folder / part.name).unlink()
                del self._sizes[part]

    def _write(self, part: Part, table: Any) -> None:
        path = self._folder / part.name
        scratch = path.with_name(path.name + _TMP)
        try:
            with scratch.open("wb") as file:
                pq.write_table(
                    table,
                    file,
                    compression="zstd",
                    compression_level=1,
                    row_group_size=self._row_group_rows,
                    use_dictionary=self._dictionary,
                )
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise HostError(f"history {path}: {error}") from error
        self._sizes[part] = path.stat().st_size


def day_of(second: int) -> str:
    """UTC day of a Unix second, as YYYY-MM-DD."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d")


def day_start_s(day: str) -> int:
    """First second of a UTC day."""
    return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())


def days(start_s: int, end_s: int) -> Iterator[tuple[str, int, int]]:
    """UTC days that meet [start_s, end_s): (day, first second, one past the last second), clipped."""
    at = start_s
    while at < end_s:
        following = min(end_s, at // DAY_S * DAY_S + DAY_S)
        yield day_of(at), at, following
        at = following
