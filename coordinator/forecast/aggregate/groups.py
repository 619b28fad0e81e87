"""Who belongs to which group: names in, rows and group sums out. Pure.

A VM is in at most one group of each kind, and always in the fleet. `Roster` turns that into one list of (group row, VM row) pairs, sorted
by group, so that any array over VMs is summed per group in one pass (`np.add.reduceat`), in float64 and in a fixed order: same input,
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64

KINDS: Final = ("app", "client", "host", "fleet")
FLEET: Final = KINDS.index("fleet")
NOWHERE: Final = -1
_CHUNK: Final = 1 << 22  # values gathered at a time: bounds the scratch memory to 32 MiB


class GroupKey(NamedTuple):
    """`kind` is one of KINDS; `name` is the application, client or host ("" for the fleet)."""

    kind: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The groups of one VM; "" = none of that kind. Every VM is in the fleet."""

    app: str = ""
    client: str = ""
    host: str = ""

    def places(self) -> tuple[GroupKey | None, ...]:
        """One key per kind, in the order of KINDS."""
        named = (("app", self.app), ("client", self.client), ("host", self.host))
        return (*(GroupKey(kind, name) if name else None for kind, name in named), GroupKey("fleet", ""))


def homes(vm_ids: Sequence[str], groups: Mapping[str, Membership], row_of: dict[GroupKey, int]) -> NDArray[np.int64]:
    """Group row per VM and kind int64[v, kind], NOWHERE = none. Keys not seen before get the next rows of `row_of`."""
    out = np.full((len(vm_ids), len(KINDS)), NOWHERE, dtype=np.int64)
    known: dict[Membership, list[int]] = {}
    alone = Membership()
    for i, vm_id in enumerate(vm_ids):
        membership = groups.get(vm_id, alone)
        rows = known.get(membership)
        if rows is None:
            rows = [NOWHERE if key is None else row_of.setdefault(key, len(row_of)) for key in membership.places()]
            known[membership] = rows
        out[i] = rows
    return out


class Roster:
    """Pairs (group row, VM row), sorted by group row; `rows` are the groups that have members, ascending."""

    def __init__(self, home: NDArray[np.int64], vm_rows: NDArray[np.int64]) -> None:
        """home int64[n, kind]: group rows of the VMs whose rows in the VM arrays are vm_rows int64[n]."""
        flat = home.ravel()
        inside = np.flatnonzero(flat != NOWHERE)
        order = inside[np.argsort(flat[inside], kind="stable")]
        group = flat[order]
        self.vms: NDArray[np.int64] = np.repeat(vm_rows, home.shape[1])[order]
        self.starts: NDArray[np.int64] = np.flatnonzero(np.diff(group, prepend=NOWHERE)).astype(np.int64)
        self.rows: NDArray[np.int64] = group[self.starts]
        self.counts: NDArray[np.int64] = np.diff(np.append(self.starts, len(order)))

    def sum(self, values: NDArray[Any]) -> F64:
        """Sums over members: [v, ...] -> float64[groups of `rows`, ...]. NaN counts as nothing."""
        tail = values.shape[1:]
        out = np.zeros((len(self.rows), *tail))
        ends = self.starts + self.counts
        step = max(1, _CHUNK // max(1, int(np.prod(tail))))
        first = 0
        while first < len(self.rows):
            # as many whole groups as fit; a group larger than that goes alone
            last = max(first + 1, int(np.searchsorted(ends, self.starts[first] + step, side="right")))
            pairs = self.vms[self.starts[first] : ends[last - 1]]
            taken = values[pairs].astype(np.float64)
            taken[np.isnan(taken)] = 0.0
            out[first:last] = np.add.reduceat(taken, self.starts[first:last] - self.starts[first], axis=0)
            first = last
        return out

    def only(self, wanted: NDArray[np.bool_]) -> Roster:
        """The same pairs, of the groups marked in `wanted` bool[len(rows)] alone."""
        part = object.__new__(Roster)
        pairs = np.repeat(wanted, self.counts)
        part.vms = self.vms[pairs]
        part.rows, part.counts = self.rows[wanted], self.counts[wanted]
        part.starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(part.counts)[:-1]])[: len(part.rows)]
        return part

    def compact(self) -> Roster:
        """The same groups over arrays that hold one row per pair, in the order of `vms`."""
        part = object.__new__(Roster)
        part.rows, part.counts, part.starts = self.rows, self.counts, self.starts
        part.vms = np.arange(len(self.vms))
        return part
