"""Readings that cannot be are taken for unknown, one by one; whatever can be is left as it is."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.plausibility import BOUNDS, STAMPS, admitted
from shared.frame import HOST_COLUMNS, decode_block, encode_block
from shared.model import VM_COLUMNS, HostSample, VmSample
from shared.units import UNLIMITED

HOST_CPU = 8000


def sample(host: dict[str, int] | None = None, **readings: int) -> HostSample:
    vms = {"a": VmSample(**readings), "b": VmSample(cpu_used_millicores=700)}
    return HostSample(wall_ns=1, monotonic_ns=1, period_ns=5, vms=vms, **(host or {}))  # type: ignore[arg-type]


def taken(*samples: HostSample) -> tuple[tuple[HostSample, ...], Counter[str]]:
    dropped: Counter[str] = Counter()
    return decode_block(encode_block(samples), admitted(HOST_CPU, dropped)), dropped


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("cpu_used_millicores", -1),
        ("cpu_used_millicores", HOST_CPU * 5 // 4 + 1),
        ("cpu_used_peak_millicores", 10**12),
        ("cpu_quota_millicores", -2),
        ("psi_memory_some_permille", 1101),
        ("cpu_ready_permille", 1_000_001),
        ("memory_used_bytes", 2**53 + 1),
        ("net_rx_bits_per_s", -5),
        ("vcpus", 4097),
        ("disk_latency_us", -(2**62)),
    ],
)
def test_what_cannot_be_is_unknown_and_the_rest_of_the_frame_is_taken(column: str, value: int) -> None:
    good = sample(cpu_throttled_permille=3, **({} if column == "vcpus" else {"vcpus": 4}))
    bad = sample(cpu_throttled_permille=3, **({} if column == "vcpus" else {"vcpus": 4}), **{column: value})
    found, dropped = taken(bad, good)
    assert found == (good, good)
    assert dropped == {column: 1}


def test_a_hosts_own_readings_are_looked_at_too() -> None:
    found, dropped = taken(sample(host={"cpu_used_millicores": 10**9, "psi_io_some_permille": 12}))
    assert found == (sample(host={"psi_io_some_permille": 12}),)
    assert dropped == {"cpu_used_millicores": 1}


def test_of_a_host_of_unknown_size_any_use_of_cpus_can_be() -> None:
    dropped: Counter[str] = Counter()
    block = encode_block([sample(cpu_used_peak_millicores=10**12)])
    assert decode_block(block, admitted(None, dropped)) == decode_block(block)
    assert not dropped


def test_every_column_but_the_times_has_bounds() -> None:
    assert set(BOUNDS) == {*VM_COLUMNS, *HOST_COLUMNS} - STAMPS


@given(st.data())
def test_a_reading_within_its_bounds_is_never_touched(data: st.DataObject) -> None:
    columns = data.draw(st.lists(st.sampled_from(VM_COLUMNS), unique=True))
    readings = {}
    for column in columns:
        low, high = BOUNDS[column]
        high = min(high, HOST_CPU) if column.startswith("cpu_used") else high
        readings[column] = data.draw(st.one_of(st.integers(low, high), st.sampled_from([low, high])))
    original = sample(**readings)
    found, dropped = taken(original)
    assert found == (original,)
    assert not dropped


def test_unlimited_is_a_limit() -> None:
    limits = {name: UNLIMITED for name in BOUNDS if BOUNDS[name][0] == UNLIMITED}
    assert len(limits) == 7
    original = msgspec.structs.replace(sample(), vms={"a": VmSample(**limits)})
    assert taken(original) == ((original,), Counter())
