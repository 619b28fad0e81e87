"""What the guard lets through, over all levers at once and by property: every rule holds for it."""

from __future__ import annotations

import msgspec
from guard_scene import CONFIG, DOMAIN, MEMORY, NOW, TAKES, K, S, ago, check, reading
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.acting.guard import View
from agent.acting.levers import DIMM_BYTES, bounds, charge, extent, grows, shows, smallest_change, tellable
from shared.model import Policy
from shared.plan import StepKind
from shared.units import GIB, UNLIMITED

amounts = st.one_of(st.integers(0, 20), st.integers(0, 10_000), st.integers(0, 12 * GIB), st.integers(0, 96).map(lambda n: n * DIMM_BYTES))
seconds = st.one_of(st.none(), st.integers(0, 30_000).map(ago))


@st.composite
def views(draw: st.DrawFn, kind: StepKind) -> View:
    bound = st.none() | amounts
    rules = Policy(
        cpu_floor_millicores=draw(bound),
        cpu_ceiling_millicores=draw(bound),
        memory_floor_bytes=draw(bound),
        memory_ceiling_bytes=draw(bound),
        net_floor_bits_per_s=draw(bound),
        net_ceiling_bits_per_s=draw(bound),
        disk_floor_bytes_per_s=draw(bound),
        disk_ceiling_bytes_per_s=draw(bound),
    )
    use = draw(st.none() | amounts)
    seen = reading(
        cpu_used_millicores=use,
        memory_used_bytes=use,
        memory_usable_bytes=draw(st.none() | amounts),
        net_rx_bits_per_s=use,
        net_tx_bits_per_s=use,
        disk_read_bytes_per_s=use,
        disk_read_ops_per_s=use,
        cpu_throttled_permille=draw(st.sampled_from([0, 500])),
        psi_memory_some_permille=draw(st.sampled_from([0, 500])),
    )
    return View(
        domain=msgspec.structs.replace(DOMAIN, policy=rules),
        in_force=draw(amounts | st.just(UNLIMITED if kind in (K.CPU_QUOTA, K.NET_RX, K.NET_TX, K.DISK_BYTES, K.MEMORY_HIGH) else 4)),
        vcpus=draw(st.integers(1, 8)),
        reading=draw(st.sampled_from([seen, seen, seen, None])),
        reading_at_ns=ago(draw(st.integers(0, 40))),
        grown_at_ns=draw(seconds),
        shrunk_at_ns=draw(seconds),
        room=draw(st.none() | st.integers(-(10**9), 12 * GIB)),
        memory_bytes=draw(st.none() | amounts),
        memory_sum_bytes=draw(amounts),
        memory_falling=draw(st.booleans()),
        memory_peak=draw(st.none() | st.tuples(st.integers(0, 3599).map(ago), amounts)),
        turning=draw(st.booleans()),
        turned_at_ns=tuple(sorted(draw(st.lists(st.integers(0, 21_599).map(ago), max_size=3)))),
        cut_recently=draw(st.booleans()),
        cuts_at_ns=tuple(sorted(draw(st.lists(st.integers(0, 59).map(ago), max_size=3)))),
        vms=draw(st.integers(1, 6)),
        circuit_open_until_ns=draw(st.sampled_from([0, NOW + S])),
        budget_base=draw(st.none() | amounts),
        oom_at_ns=draw(seconds),
    )


@settings(max_examples=200)
@given(st.data(), st.sampled_from(TAKES), st.booleans(), st.booleans())
def test_what_passes_respects_every_rule(data: st.DataObject, kind: StepKind, restoring: bool, unplanned: bool) -> None:
    seen = data.draw(views(kind))
    value = data.draw(amounts | st.just(UNLIMITED))
    verdict = check(kind, value, seen, restoring=restoring, unplanned=unplanned)
    assert (verdict.value is None) <= (verdict.code is not None)
    if verdict.value is None:
        assert verdict.wait_ns >= 0 and verdict.detail
        return
    assert seen.domain is not None and seen.in_force is not None
    got, current = verdict.value, seen.in_force
    assert type(got) is int
    low, high = bounds(kind, seen.domain, CONFIG)
    was, now = (extent(kind, v, seen.domain, seen.vcpus) for v in (current, got))
    assert not shows(kind, got, current) and (verdict.clipped == (got != value))
    assert kind is not K.DIMM or got % DIMM_BYTES == current % DIMM_BYTES or got % DIMM_BYTES == 0
    if grows(current, got):
        assert got == UNLIMITED or got <= high
        assert value == UNLIMITED or got <= value
        if seen.room is not None and kind is not K.VCPUS:
            more = charge(kind, got, seen.domain, seen.vcpus) - charge(kind, current, seen.domain, seen.vcpus)
            assert more <= max(0, seen.room)
        if kind in (K.MEMORY, K.VIRTIO_MEM, K.DIMM):
            whole = current if kind is K.MEMORY else seen.memory_bytes or 0
            assert got - current <= max(whole * 50 // 1000, tellable(kind, current))
        if unplanned and seen.budget_base is not None and kind not in (K.DISK_BYTES, K.DISK_OPS, K.MEMORY_HIGH, K.VCPUS_ONLINE):
            assert now <= seen.budget_base * 2 + smallest_change(kind, CONFIG)
        return
    # A shrink: calm, fresh, small, above floor and use; rare and few unless an owner takes back.
    assert got >= min(low, current) if current != UNLIMITED else got >= low
    assert seen.reading is not None and NOW - seen.reading_at_ns <= 30 * S and seen.circuit_open_until_ns <= NOW
    if kind in MEMORY:
        assert seen.reading.psi_memory_some_permille == 0
        assert seen.oom_at_ns is None or NOW - seen.oom_at_ns >= 86_400 * S
        assert kind in (K.VIRTIO_MEM, K.DIMM) or got >= (seen.reading.memory_used_bytes or 0)
    if kind in (K.VIRTIO_MEM, K.DIMM):
        assert was - now <= (seen.reading.memory_usable_bytes or 0) and not seen.memory_falling
        assert seen.memory_sum_bytes - (was - now) >= bounds(K.MEMORY, seen.domain, CONFIG)[0]
    share = 50 if kind in MEMORY else 500
    whole = was if kind not in (K.VIRTIO_MEM, K.DIMM) else seen.memory_bytes or 0
    assert was - now <= max(whole * share // 1000, smallest_change(kind, CONFIG))
    if restoring:
        return
    assert seen.shrunk_at_ns is None or NOW - seen.shrunk_at_ns >= 60 * S
    assert seen.grown_at_ns is None or NOW - seen.grown_at_ns >= 120 * S
    assert not seen.turning or len(seen.turned_at_ns) < 2
    assert seen.cut_recently or len(seen.cuts_at_ns) < max(1, seen.vms // 2)
    if kind in (K.MEMORY, K.VIRTIO_MEM, K.DIMM):
        total = max(seen.memory_sum_bytes, was)
        peak = max(total, seen.memory_peak[1] if seen.memory_peak else 0)
        assert total - (was - now) >= peak - peak // 2
