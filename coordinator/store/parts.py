"""A table as Parquet parts by UTC day, in a folder or an object store (objects.py): small writes, few objects, newest write wins.

A part is `<day>.<number>.<level>.parquet`. Level 0 is one write; after `FAN_IN` of them the day's level-0 parts become one level-1
part; once a newer day is being written, the older day becomes a single level-2 part: each row is rewritten twice, not once an
hour, and a day has at most 2 x FAN_IN + 24 objects. Rows are replaced by reading parts in order of number. There is no manifest: the
list of parts is the table. Invariants: a part appears whole or not at all; a kill between writing a merged part and deleting its members
leaves the same rows twice, which reads the same; a part that cannot be read is named, set aside, and the rest stays readable.
One thread writes; any thread may read meanwhile.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.store.objects import Objects
from shared.errors import HostError

FAN_IN: Final = 12  # level-0 parts per merge: an hour of buckets
DAY_S: Final = 86_400
RESCANS: Final = 8  # a reader starts again when the writer merged parts away under it; a merge takes longer than a scan begins
AHEAD: Final = 2  # parts of an object store fetched while another is worked on
_PART = re.compile(r"^(\d{4}-\d{2}-\d{2})\.(\d{8})\.([012])\.parquet$")


@dataclass(frozen=True, order=True)
class Part:
    """One object. The order is the order of writing within a day."""

    day: str
    number: int
    level: int

    @property
    def name(self) -> str:
        return f"{self.day}.{self.number:08d}.{self.level}.parquet"


class PartTable:
    """The parts of one table.

    `arrange` sorts and de-duplicates rows when parts merge (oldest part first in its input). Raises HostError when disk or store refuse.
    """

    def __init__(
        self,
        objects: Objects,
        arrange: Callable[[Any], Any],
        *,
        row_group_rows: int,
        retention_days: int,
        max_bytes: int,
        dictionary: list[str],
    ) -> None:
        if not 1 <= retention_days <= 3660:
            raise ValueError(f"retention_days {retention_days}: allowed 1 to 3660")
        self._objects, self._arrange, self._row_group_rows = objects, arrange, row_group_rows
        self._retention_days, self._max_bytes, self._dictionary = retention_days, max_bytes, dictionary
        self._lock = threading.Lock()  # guards the list of parts; held for moments
        self._unsettled = False  # merging or dropping failed: it is due again
        self.days_dropped = 0
        self.damaged: dict[str, str] = {}  # object set aside -> what was wrong with it
        self.trouble = ""  # why merging or dropping failed the last time; "" = it did not
        try:
            found = [(match, size) for name, size in objects.sizes().items() if (match := _PART.match(name)) is not None]
        except (OSError, pa.ArrowException) as error:
            raise HostError(f"history {objects.where}: {error}") from error
        self._sizes = {Part(match[1], int(match[2]), int(match[3])): size for match, size in found}
        self._next = 1 + max((part.number for part in self._sizes), default=0)

    def append(self, day: str, table: Any, *, bulk: bool = False) -> None:
        """Durably add rows of one UTC day, then merge and drop what is due. `bulk`: many buckets at once, merged already.

        A failure to merge or drop is told in `trouble` and made good with a later append: the rows are safe.
        """
        known = self.parts()
        newer = any(part.day > day for part in known)
        first = not any(part.day == day for part in known)
        level = (2 if first else 1) if bulk else 0
        self._write(Part(day, self._next, level), self._arrange(table) if bulk else table)
        self._next += 1
        try:
            self._settle(day, new_day=(first and not newer) or self._unsettled)
            self._unsettled, self.trouble = False, ""
        except HostError as error:
            self._unsettled, self.trouble = True, str(error)

    def parts(self, since_day: str = "", until_day: str = "9999") -> list[Part]:
        """Parts of these days, in the order in which they must be read."""
        with self._lock:
            return sorted(part for part in self._sizes if since_day <= part.day <= until_day)

    def scan(self, since_day: str, until_day: str, columns: list[str], filters: Any = None) -> Iterator[Any]:
        """Columns of the parts of these days as pyarrow Tables, in the order in which later rows replace earlier ones.

        Where the writer merged parts away meanwhile, all comes again from the first part on: the last word of every row is the right one.
        """
        for _ in range(RESCANS):
            try:
                for table in self._fetched(self.parts(since_day, until_day), columns, filters):
                    if table is not None:
                        yield table
            except FileNotFoundError:
                continue
            return
        raise HostError(f"history {self._objects.where}: parts vanish while they are read; does another process write here?")

    def newest(self, column: str) -> int | None:
        """Largest value of an int64 column, from the statistics of the newest day that can be read."""
        for day in sorted({part.day for part in self.parts()}, reverse=True):
            found = [largest for part in self.parts(day, day) if (largest := self._largest(part, column)) is not None]
            if found:
                return max(found)
        return None

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        with self._lock:
            return sum(self._sizes.values())

    @property
    def days(self) -> list[str]:
        """Days with parts, oldest first."""
        return sorted({part.day for part in self.parts()})

    def drop_oldest(self) -> int:
        """Give up the oldest day unless it is the only one; the bytes that this freed."""
        days = self.days
        if len(days) < 2:
            return 0
        before = self.total_bytes
        try:
            self._drop_day(days[0])
        except HostError as error:
            self.trouble = str(error)
        return before - self.total_bytes

    def _settle(self, day: str, *, new_day: bool) -> None:
        if new_day:
            newest = self.days[-1]
            for older in self.days[:-1]:
                self._merge(older, 2, (0, 1, 2))
            self._drop(newest)
        if sum(part.level == 0 for part in self.parts(day, day)) >= FAN_IN:
            self._merge(day, 1, (0,))

    def _fetched(self, parts: list[Part], columns: list[str], filters: Any) -> Iterator[Any]:
        """Each part's table, None where it is damaged; of a store, the next ones are on their way meanwhile."""
        if not self._objects.remote:
            yield from (self._read(part, columns, filters) for part in parts)
            return
        with ThreadPoolExecutor(AHEAD, "history-read") as pool:
            waiting: list[Future[Any]] = []
            try:
                for part in parts:
                    waiting.append(pool.submit(self._read, part, columns, filters))
                    if len(waiting) > AHEAD:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, part: Part, columns: list[str] | None, filters: Any = None) -> Any:
        """A part as a pyarrow Table; None when it is damaged. FileNotFoundError when it is gone."""
        options = {
            "columns": columns,
            "read_dictionary": self._dictionary if columns else None,  # a merge sorts, and dictionaries cannot be sorted
            "filters": filters,
            "partitioning": None,
            "page_checksum_verification": True,
        }
        return self._parsed(part, lambda source: pq.read_table(source, **options))

    def _largest(self, part: Part, column: str) -> int | None:
        def largest(source: Any) -> int:
            metadata = pq.read_metadata(source)
            index = metadata.schema.to_arrow_schema().get_field_index(column)
            return max(int(metadata.row_group(group).column(index).statistics.max) for group in range(metadata.num_row_groups))

        found: int | None = self._parsed(part, largest)
        return found

    def _parsed(self, part: Part, parse: Callable[[Any], Any]) -> Any:
        """What `parse` makes of a part; None when the part is damaged. A store that does not answer is no damage: HostError then."""
        try:
            with self._objects.open(part.name) as source:
                return parse(source)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            doubt = error
        try:
            with self._objects.open(part.name) as source:
                data = source.read()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise HostError(f"history {self._objects.where}/{part.name}: {error}") from error
        try:
            return parse(pa.BufferReader(data))  # all of it came, so what is wrong now is wrong with the part
        except (OSError, pa.ArrowException):
            self._set_aside(part, str(doubt))
            return None

    def _set_aside(self, part: Part, why: str) -> None:
        self.damaged[part.name] = " ".join(why.split())[:200]
        with self._lock:
            self._sizes.pop(part, None)
        try:
            self._objects.set_aside(part.name)
        except (OSError, pa.ArrowException) as error:
            self.trouble = f"history {self._objects.where}/{part.name}: damaged, and not set aside: {error}"

    def _merge(self, day: str, level: int, levels: tuple[int, ...]) -> None:
        members = [part for part in self.parts(day, day) if part.level in levels]
        if len(members) < 2:
            return
        tables = [table for part in members if (table := self._read(part, None)) is not None]
        if not tables:
            return
        merged = self._arrange(pa.concat_tables(tables, promote_options="default"))
        target = Part(day, members[-1].number, level)
        self._write(target, merged)
        self._delete([part for part in members if part != target and part.name not in self.damaged])

    def _drop(self, newest_day: str) -> None:
        """Days past retention, then the oldest days while the table is over its size; the newest day always stays."""
        oldest_kept = day_of(day_start_s(newest_day) - self._retention_days * DAY_S)
        for day in self.days[:-1]:
            if day >= oldest_kept and self.total_bytes <= self._max_bytes:
                return
            self._drop_day(day)

    def _drop_day(self, day: str) -> None:
        self.days_dropped += 1
        self._delete(self.parts(day, day))

    def _delete(self, parts: list[Part]) -> None:
        for part in parts:
            try:
                self._objects.delete(part.name)
            except (OSError, pa.ArrowException) as error:
                raise HostError(f"history {self._objects.where}/{part.name}: {error}") from error
            with self._lock:
                self._sizes.pop(part, None)

    def _write(self, part: Part, table: Any) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=1,
            row_group_size=self._row_group_rows,
            use_dictionary=self._dictionary,
            write_page_checksum=True,
        )
        data = sink.getvalue()
        try:
            self._objects.put(part.name, data)
        except (OSError, pa.ArrowException) as error:
            raise HostError(f"history {self._objects.where}/{part.name}: {error}") from error
        with self._lock:
            self._sizes[part] = data.size


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
