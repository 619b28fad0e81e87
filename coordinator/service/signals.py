"""What an application's report of its own load looks like on the wire, and what became of it. Structs of /api/v1, see view.py."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from coordinator.demand.signals import MAX_SIGNAL
from coordinator.model import SIGNALS
from shared.model import Identifier

SignalName = Literal["requests_per_s", "queue_length"]
Value = Annotated[float, Meta(ge=0, le=MAX_SIGNAL)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]

MAX_READINGS: Final = 500  # each is up to 130 bytes, and a body holds 64 KiB
MAX_VALUES: Final = 20_000  # readings times the VMs that they are for, of one request: bounds the work of an answer to some 20 ms


class SignalReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured at `time_s`. For exactly one of: a VM, the VMs of a client, those of an application. At least one signal."""

    time_s: Annotated[float, Meta(ge=0, le=2**33, description="Unix time of the measurement")]
    vm_id: Identifier | None = None
    client: Name | None = None
    application: Name | None = None
    requests_per_s: Annotated[Value | None, Meta(description="requests or transactions per second")] = None
    queue_length: Annotated[Value | None, Meta(description="requests, messages or jobs that wait")] = None


class SignalBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Readings, taken all or none."""

    readings: Annotated[tuple[SignalReport, ...], Meta(min_length=1, max_length=MAX_READINGS)]


class SignalsTaken(msgspec.Struct, frozen=True, kw_only=True):
    """Durable. Counts readings times the VMs that they were for; a reading in the ten seconds of another takes its place (`replaced`)."""

    vms: int
    taken: int
    replaced: int
    late: int  # new, for a bucket that had ended: history has them, the forecast of that moment did without


class SignalState(msgspec.Struct, frozen=True, kw_only=True):
    """One signal of one VM: what was told last, when, and the mean of the newest closed bucket."""

    signal: SignalName
    value: float | None
    time_s: float | None
    bucket_mean: float | None


class SignalHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Means of the 5-minute buckets that the demand beside it is of; None = not told."""

    signal: SignalName
    mean: tuple[float | None, ...]


assert SIGNALS == ("requests_per_s", "queue_length")  # the fields above, in this order
