"""The guard's rules over time and over the host, and the newer levers: each code by example, each promise by property."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.acting.guard import Guard, Verdict, View
from agent.acting.levers import DIMM_BYTES, WEIGHTS, bounds, charge, extent, grows, shows, smallest_change, tellable
from shared.config import GuardConfig
from shared.model import Capabilities, Domain, Policy, VmSample
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED

K, R = StepKind, RefusalCode
S = NS_PER_S
NOW = 1_000_000 * S
CONFIG = GuardConfig()
CAN = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__))
DOMAIN = Domain(
    vm_id="vm-1",
    name="web",
    vcpus_max=8,
    memory_max_bytes=8 * GIB,
    virtio_mem_max_bytes=4 * GIB,
    dimm_max_bytes=4 * GIB,
    net_max_bits_per_s=10**9,
    capabilities=CAN,
)
CALM = VmSample(
    cpu_used_millicores=300,
    cpu_throttled_permille=0,
    memory_used_bytes=GIB,
    memory_usable_bytes=7 * GIB,
    memory_reading_age_ms=0,
    psi_memory_some_permille=0,
    psi_io_some_permille=0,
    net_rx_bits_per_s=1_000_000,
    net_tx_bits_per_s=1_000_000,
    disk_read_bytes_per_s=MIB,
    disk_write_bytes_per_s=MIB,
    disk_read_ops_per_s=30,
    disk_write_ops_per_s=30,
)
# One value in force for every lever, with room to move both ways.
IN_FORCE = {
    K.VCPUS: 4,
    K.VCPUS_ONLINE: 4,
    K.CPU_QUOTA: 2000,
    K.CPU_SHARES: 1024,
    K.CPU_PERIOD: 100_000,
    K.MEMORY: 4 * GIB,
    K.VIRTIO_MEM: 2 * GIB,
    K.DIMM: 2 * GIB,
    K.MEMORY_HIGH: 4 * GIB,
    K.DISK_BYTES: 100 * MIB,
    K.DISK_OPS: 1000,
    K.DISK_WEIGHT: 100,
    K.NET_RX: 10**8,
    K.NET_TX: 10**8,
    K.NET_TX_RATE: 10**7,
}
LESS = {kind: value - value // 4 for kind, value in IN_FORCE.items()} | {K.VCPUS: 3, K.VCPUS_ONLINE: 3, K.DIMM: GIB}
MORE = {kind: value + value // 4 for kind, value in IN_FORCE.items()} | {K.VCPUS: 5, K.VCPUS_ONLINE: 5, K.DIMM: 3 * GIB}
TAKES = tuple(kind for kind in IN_FORCE if kind not in WEIGHTS)
MEMORY = (K.MEMORY, K.VIRTIO_MEM, K.DIMM, K.MEMORY_HIGH)


def view(kind: StepKind = K.CPU_QUOTA, **changes: object) -> View:
    fields: dict[str, object] = {
        "domain": DOMAIN,
        "in_force": IN_FORCE.get(kind),
        "vcpus": 8,
        "reading": CALM,
        "reading_at_ns": NOW,
        "room": 10**15,
        "memory_bytes": 4 * GIB,
        "memory_sum_bytes": 4 * GIB,
        "vms": 10,
    }
    return View(**{**fields, **changes})  # type: ignore[arg-type]


def check(kind: StepKind, value: int, seen: View, config: GuardConfig = CONFIG, /, **how: bool) -> Verdict:
    return Guard(config).check(Step(id="s", vm_id="vm-1", kind=kind, value=value, deadline_ns=NOW), seen, NOW, **how)


def ago(seconds: float) -> int:
    return NOW - int(seconds * S)


def reading(**changes: object) -> VmSample:
    return msgspec.structs.replace(CALM, **changes)


def policy(**fields: object) -> Domain:
    return msgspec.structs.replace(DOMAIN, policy=Policy(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", IN_FORCE)
def test_every_lever_moves_both_ways_when_nothing_speaks_against_it(kind: StepKind) -> None:
    up, down = check(kind, MORE[kind], view(kind)), check(kind, LESS[kind], view(kind))
    assert up.value is not None and IN_FORCE[kind] < up.value <= MORE[kind]
    assert down.value is not None and LESS[kind] <= down.value < IN_FORCE[kind]
    assert {up.code, down.code} <= {None, R.STEP_TOO_LARGE}


@pytest.mark.parametrize("kind", IN_FORCE)
def test_a_direction_that_the_domain_cannot_take_is_refused_in_its_own_words(kind: StepKind) -> None:
    cannot = msgspec.structs.replace(DOMAIN, capabilities=Capabilities(**dict.fromkeys(Capabilities.__struct_fields__, "vfio")))
    verdict = check(kind, MORE[kind], view(kind, domain=cannot))
    assert verdict.code is R.NOT_CAPABLE and verdict.detail == f"{kind}: vfio"
    only_down = msgspec.structs.replace(DOMAIN, capabilities=msgspec.structs.replace(CAN, vcpu_unplug="no ACPI"))
    assert (check(kind, LESS[kind], view(kind, domain=only_down)).code is R.NOT_CAPABLE) == (kind is K.VCPUS)
    assert check(kind, MORE[kind], view(kind, domain=only_down)).value is not None


@pytest.mark.parametrize("kind", [*IN_FORCE, K.MIGRATE])
def test_a_vm_left_to_somebody_else_is_left_alone_in_every_way(kind: StepKind) -> None:
    seen = view(kind, yielded_until_ns=NOW + 90 * S)
    for value in (MORE.get(kind, UNLIMITED), LESS.get(kind, UNLIMITED)):
        for how in ({}, {"restoring": True}, {"unplanned": True}):
            verdict = check(kind, value, seen, **how)
            assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.YIELDED, 90 * S)
            assert "web" in verdict.detail and "90 s" in verdict.detail
            assert check(kind, value, replace(seen, yielded_until_ns=NOW), **how).value is not None


# Memory moves in strides, both ways


def test_the_balloon_moves_by_a_twentieth_both_ways() -> None:
    up, down = check(K.MEMORY, 8 * GIB, view(K.MEMORY)), check(K.MEMORY, 2 * GIB, view(K.MEMORY))
    assert (up.value, up.code) == (4 * GIB + 4 * GIB * 50 // 1000, R.STEP_TOO_LARGE)
    assert (down.value, down.code) == (4 * GIB - 4 * GIB * 50 // 1000, R.STEP_TOO_LARGE)
    assert up.numbers == {"asked": 8 * GIB, "allowed": up.value}
    assert down.numbers == {"asked": 2 * GIB, "in_force": 4 * GIB, "allowed": down.value}
    assert str(up.value) in up.detail and str(down.value) in down.detail


def test_growth_is_never_too_small_to_be_told_from_standing_still() -> None:
    timid = GuardConfig(memory_grow_max_permille=1, memory_shrink_max_permille=1, memory_floor_bytes=16 * MIB)
    for current in (20 * MIB, 4 * GIB):
        value = check(K.MEMORY, 8 * GIB, view(K.MEMORY, in_force=current), timid).value
        assert value == current + tellable(K.MEMORY, current)
        assert not shows(K.MEMORY, value, current)
    assert check(K.MEMORY, 2 * GIB, view(K.MEMORY), timid).code is R.STEP_TOO_LARGE


def test_a_devices_share_is_one_of_the_vms_memory() -> None:
    assert check(K.VIRTIO_MEM, 4 * GIB, view(K.VIRTIO_MEM, in_force=0)).value == 4 * GIB * 50 // 1000
    assert check(K.VIRTIO_MEM, 0, view(K.VIRTIO_MEM)).value == 2 * GIB - 4 * GIB * 50 // 1000
    # 5 % of 4 GiB is one DIMM and a bit; of 1 GiB less than one, and one is the least there is.
    assert check(K.DIMM, 4 * GIB, view(K.DIMM)).value == 2 * GIB + DIMM_BYTES
    assert check(K.DIMM, 4 * GIB, view(K.DIMM, memory_bytes=GIB)).value == 2 * GIB + DIMM_BYTES
    assert check(K.DIMM, 4 * GIB, view(K.DIMM, memory_bytes=8 * GIB)).value == 2 * GIB + 3 * DIMM_BYTES
    assert check(K.DIMM, 0, view(K.DIMM)).value == 2 * GIB - DIMM_BYTES
    for kind in (K.VIRTIO_MEM, K.DIMM):
        assert check(kind, 0, view(kind, memory_bytes=None)).code is R.READING_STALE
        assert check(kind, 4 * GIB, view(kind, memory_bytes=None)).code is R.READING_STALE


def test_memory_high_is_lifted_at_once_and_lowered_in_strides_above_the_working_set() -> None:
    assert check(K.MEMORY_HIGH, UNLIMITED, view(K.MEMORY_HIGH)) == Verdict(value=UNLIMITED)
    assert check(K.MEMORY_HIGH, UNLIMITED, view(K.MEMORY_HIGH, budget_base=1), unplanned=True) == Verdict(value=UNLIMITED)
    full = 16 * GIB  # balloon, virtio-mem and DIMMs at their maxima
    assert check(K.MEMORY_HIGH, GIB, view(K.MEMORY_HIGH, in_force=UNLIMITED)).value == full - full * 50 // 1000
    verdict = check(K.MEMORY_HIGH, 1100 * MIB, view(K.MEMORY_HIGH, in_force=1150 * MIB))
    assert (verdict.value, verdict.code) == (GIB + GIB // 10, R.BELOW_WORKING_SET)
    assert check(K.MEMORY_HIGH, GIB, view(K.MEMORY_HIGH, reading=reading(memory_reading_age_ms=31_000))).code is R.READING_STALE


# Counts of vCPUs


def test_vcpus_leave_by_halves_and_never_below_what_runs() -> None:
    assert check(K.VCPUS, 1, view(K.VCPUS, in_force=8)).value == 4
    assert check(K.VCPUS, 1, view(K.VCPUS, in_force=2)).value == 1
    assert check(K.VCPUS, 1, view(K.VCPUS, in_force=2), GuardConfig(cpu_shrink_max_permille=1)).value == 1
    busy = reading(cpu_used_millicores=1900)
    verdict = check(K.VCPUS, 1, view(K.VCPUS, reading=busy))  # 1900 and its tenth need three
    assert (verdict.value, verdict.code) == (3, R.BELOW_WORKING_SET) and "need 3" in verdict.detail
    assert check(K.VCPUS, 2, view(K.VCPUS, reading=reading(cpu_used_millicores=1818))).value == 2
    assert check(K.VCPUS, 1, view(K.VCPUS, reading=reading(cpu_throttled_permille=20))).code is R.PRESSURE_VETO
    verdict = check(K.VCPUS, 1, view(K.VCPUS, in_force=3, domain=policy(cpu_floor_millicores=1500)))
    assert check(K.VCPUS, 0, view(K.VCPUS)).code is R.INVALID_VALUE
    capped = msgspec.structs.replace(policy(cpu_floor_millicores=1500), capabilities=CAN)
    assert (check(K.VCPUS, 1, view(K.VCPUS, in_force=3, domain=capped)).value, verdict.code) == (2, R.BELOW_FLOOR)


def test_a_guest_brings_online_what_is_plugged_in() -> None:
    verdict = check(K.VCPUS_ONLINE, 8, view(K.VCPUS_ONLINE, vcpus=6))
    assert (verdict.value, verdict.code) == (6, R.ABOVE_DOMAIN_MAXIMUM)
    assert check(K.VCPUS_ONLINE, 9, view(K.VCPUS_ONLINE)).code is R.ABOVE_DOMAIN_MAXIMUM
    assert check(K.VCPUS_ONLINE, 5, view(K.VCPUS_ONLINE, vcpus=4)).code is R.ABOVE_DOMAIN_MAXIMUM


# Weights, disk, network


def test_weights_and_the_period_need_no_reading_and_wait_for_nothing_but_the_moment() -> None:
    for kind in WEIGHTS:
        blind = view(
            kind, reading=None, shrunk_at_ns=NOW, grown_at_ns=NOW, circuit_open_until_ns=NOW + S, turning=True, turned_at_ns=(NOW, NOW)
        )
        assert check(kind, LESS[kind], blind) == Verdict(value=LESS[kind])
        assert check(kind, MORE[kind], blind) == Verdict(value=MORE[kind])
        assert check(kind, LESS[kind], replace(blind, busy=True)).code is R.VM_BUSY
        assert check(kind, 0, blind).code is R.INVALID_VALUE


def test_disk_limits_keep_floor_use_and_ceiling() -> None:
    assert check(K.DISK_BYTES, 4096, view(K.DISK_BYTES, in_force=UNLIMITED)).value == GIB // 2  # an unlimited disk counts as 1 GiB/s
    assert check(K.DISK_OPS, 50, view(K.DISK_OPS, in_force=UNLIMITED)).value == 50_000
    idle = reading(disk_read_bytes_per_s=0, disk_write_bytes_per_s=0)
    low = check(K.DISK_BYTES, 4096, view(K.DISK_BYTES, in_force=MIB + MIB // 2, reading=idle))
    assert (low.value, low.code) == (MIB, R.BELOW_FLOOR)
    used = check(K.DISK_BYTES, MIB, view(K.DISK_BYTES, in_force=3 * MIB))
    assert (used.value, used.code) == (2 * MIB + 2 * MIB // 10, R.BELOW_WORKING_SET)
    ops = check(K.DISK_OPS, 50, view(K.DISK_OPS, in_force=100))
    assert (ops.value, ops.code) == (66, R.BELOW_WORKING_SET)
    for kind in (K.DISK_BYTES, K.DISK_OPS):
        assert check(kind, LESS[kind], view(kind, reading=reading(psi_io_some_permille=200))).code is R.PRESSURE_VETO
        assert check(kind, UNLIMITED, view(kind)).value == UNLIMITED
    capped = msgspec.structs.replace(policy(disk_ceiling_bytes_per_s=110 * MIB), capabilities=CAN)
    assert check(K.DISK_BYTES, UNLIMITED, view(K.DISK_BYTES, domain=capped)).value == 110 * MIB
    assert check(K.DISK_BYTES, LESS[K.DISK_BYTES], view(K.DISK_BYTES, reading=reading(disk_read_bytes_per_s=None))).code is R.READING_STALE


def test_a_guarantee_is_promised_and_falls_to_nothing_at_last() -> None:
    clipped = check(K.NET_TX_RATE, 3 * 10**7, view(K.NET_TX_RATE, room=10**7))
    assert (clipped.value, clipped.code) == (2 * 10**7, R.HOST_COMMIT_LIMIT)
    assert check(K.NET_TX_RATE, 0, view(K.NET_TX_RATE)).value == 5 * 10**6
    assert check(K.NET_TX_RATE, 0, view(K.NET_TX_RATE, in_force=10**6)).value == 0
    busy = reading(net_tx_bits_per_s=10**9)  # a guarantee is no limit of use
    assert check(K.NET_TX_RATE, 0, view(K.NET_TX_RATE, in_force=10**6, reading=busy)).value == 0
    assert check(K.NET_TX_RATE, 0, view(K.NET_TX_RATE, reading=reading(net_tx_dropped_per_s=1))).code is R.PRESSURE_VETO
    assert check(K.NET_TX_RATE, 2 * 10**9, view(K.NET_TX_RATE)).value == 10**9


# Devices within the VM's memory


def test_devices_keep_the_working_set_and_the_floor_of_the_memory_in_sum() -> None:
    def usable(spare: int) -> VmSample:
        return reading(memory_usable_bytes=GIB // 10 + spare)  # use is 1 GiB, its margin a tenth

    verdict = check(K.VIRTIO_MEM, 0, view(K.VIRTIO_MEM, reading=usable(10 * MIB)))
    assert (verdict.value, verdict.code) == (None, R.BELOW_WORKING_SET)  # 10 MiB is less than 1 % of 2 GiB: could not be told
    verdict = check(K.VIRTIO_MEM, 0, view(K.VIRTIO_MEM, in_force=GIB, reading=usable(20 * MIB)))
    assert (verdict.value, verdict.code) == (GIB - 20 * MIB, R.BELOW_WORKING_SET)
    for blind in (reading(memory_usable_bytes=GIB // 10), reading(memory_usable_bytes=0), reading(memory_usable_bytes=None)):
        none = check(K.VIRTIO_MEM, 0, view(K.VIRTIO_MEM, reading=blind))
        assert (none.value, none.code, none.numbers) == (None, R.BELOW_WORKING_SET, {"in_force": 2 * GIB, "least": 2 * GIB})
    assert check(K.DIMM, 0, view(K.DIMM, reading=usable(100 * MIB))).code is R.BELOW_WORKING_SET  # less than one DIMM
    assert check(K.DIMM, 0, view(K.DIMM, reading=usable(200 * MIB))).value == 2 * GIB - DIMM_BYTES
    floored = msgspec.structs.replace(policy(memory_floor_bytes=6 * GIB - 50 * MIB), capabilities=CAN)
    assert check(K.VIRTIO_MEM, 0, view(K.VIRTIO_MEM, domain=floored, memory_sum_bytes=6 * GIB)).value == 2 * GIB - 50 * MIB
    assert check(K.VIRTIO_MEM, 0, view(K.VIRTIO_MEM, domain=floored, memory_sum_bytes=6 * GIB - 50 * MIB)).code is R.BELOW_WORKING_SET


def test_two_levers_never_take_memory_of_one_vm_at_a_time() -> None:
    for kind in (K.MEMORY, K.VIRTIO_MEM, K.DIMM):
        falling = view(kind, memory_falling=True)
        for how in ({}, {"restoring": True}):
            verdict = check(kind, LESS[kind], falling, **how)
            assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.VM_BUSY, S)
        assert check(kind, MORE[kind], falling).value is not None  # relief waits for nobody
    assert check(K.MEMORY_HIGH, LESS[K.MEMORY_HIGH], view(K.MEMORY_HIGH, memory_falling=True)).value is not None
    assert check(K.CPU_QUOTA, LESS[K.CPU_QUOTA], view(memory_falling=True)).value is not None


def test_a_ceiling_of_memory_holds_for_the_sum() -> None:
    capped = msgspec.structs.replace(policy(memory_ceiling_bytes=4 * GIB + 100 * MIB), capabilities=CAN)
    verdict = check(K.VIRTIO_MEM, 3 * GIB, view(K.VIRTIO_MEM, domain=capped))
    assert (verdict.value, verdict.code) == (2 * GIB + 100 * MIB, R.ABOVE_CEILING)
    assert check(K.DIMM, 3 * GIB, view(K.DIMM, domain=capped)).code is R.ABOVE_CEILING  # 100 MiB hold no DIMM
    balloon = check(K.MEMORY, 5 * GIB, view(K.MEMORY, domain=capped, memory_sum_bytes=4 * GIB + 50 * MIB))
    assert (balloon.value, balloon.code) == (4 * GIB + 50 * MIB, R.ABOVE_CEILING)
    over = check(K.VIRTIO_MEM, 3 * GIB, view(K.VIRTIO_MEM, domain=capped, memory_sum_bytes=5 * GIB))
    assert (over.value, over.code) == (None, R.ABOVE_CEILING)
    assert check(K.DIMM, 3 * GIB, view(K.DIMM, room=100 * MIB)).code is R.HOST_COMMIT_LIMIT
    most = check(K.DIMM, 4 * GIB, view(K.DIMM, memory_bytes=100 * GIB, room=GIB + 100 * MIB))
    assert (most.value, most.code) == (3 * GIB, R.HOST_COMMIT_LIMIT)
    assert check(K.VIRTIO_MEM, 5 * GIB, view(K.VIRTIO_MEM)).code is R.ABOVE_DOMAIN_MAXIMUM
    assert check(K.DIMM, 5 * GIB, view(K.DIMM)).code is R.ABOVE_DOMAIN_MAXIMUM


def test_dimms_are_whole_however_they_are_clipped() -> None:
    large = {"memory_bytes": 100 * GIB}
    capped = msgspec.structs.replace(policy(memory_ceiling_bytes=4 * GIB + 300 * MIB), capabilities=CAN)
    up = check(K.DIMM, 4 * GIB, view(K.DIMM, domain=capped, **large))
    assert (up.value, up.code) == (2 * GIB + 2 * DIMM_BYTES, R.ABOVE_CEILING)
    down = check(K.DIMM, 0, view(K.DIMM, reading=reading(memory_usable_bytes=GIB // 10 + 300 * MIB), **large))
    assert (down.value, down.code) == (2 * GIB - 2 * DIMM_BYTES, R.BELOW_WORKING_SET)
    odd = check(K.DIMM, 0, view(K.DIMM, in_force=3 * DIMM_BYTES + 7, **large))  # what another made need not be whole
    assert odd.value == 0


# The host's promise


@pytest.mark.parametrize(
    ("kind", "value", "changes", "got", "need"),
    [
        (K.CPU_QUOTA, 3000, {"room": 1000}, 3000, 1000),
        (K.CPU_QUOTA, 3000, {"room": 999}, 2999, 1000),
        (K.CPU_QUOTA, 3000, {"room": 21}, 2021, 1000),
        (K.CPU_QUOTA, 3000, {"room": 20}, None, 1000),  # could not be told from 2000
        (K.CPU_QUOTA, 8000, {"room": 59, "in_force": 100}, None, 7900),  # 59 of 7900 is less than a hundredth of what was asked
        (K.CPU_QUOTA, 6000, {"room": 59, "in_force": 100}, 159, 5900),
        (K.CPU_QUOTA, UNLIMITED, {"room": 5999}, 7999, 6000),
        (K.CPU_QUOTA, UNLIMITED, {"room": 6000}, UNLIMITED, 6000),
        (K.NET_RX, UNLIMITED, {"room": 9 * 10**8}, UNLIMITED, 9 * 10**8),
        (K.NET_RX, UNLIMITED, {"room": 9 * 10**8 - 1}, 10**9 - 1, 9 * 10**8),
        (K.NET_RX, 2 * 10**8, {"room": 0}, None, 10**8),
        (K.NET_RX, 2 * 10**8, {"room": -5}, None, 10**8),
        (K.VCPUS, 8, {"room": 4000}, 8, 4000),
        (K.VCPUS, 8, {"room": 3999}, 7, 4000),
        (K.VCPUS, 8, {"room": 1000}, 5, 4000),
        (K.VCPUS, 8, {"room": 999}, None, 4000),
        (K.VIRTIO_MEM, 2 * GIB + 100 * MIB, {"room": 100 * MIB}, 2 * GIB + 100 * MIB, 100 * MIB),
        (K.VIRTIO_MEM, 2 * GIB + 100 * MIB, {"room": 60 * MIB}, 2 * GIB + 60 * MIB, 100 * MIB),
        (K.MEMORY_HIGH, UNLIMITED, {"room": None}, UNLIMITED, 0),
        (K.DISK_BYTES, UNLIMITED, {"room": None}, UNLIMITED, 0),
    ],
)
def test_growth_fits_into_the_hosts_promise(kind: StepKind, value: int, changes: dict[str, object], got: int | None, need: int) -> None:
    verdict = check(kind, value, view(kind, **changes))
    assert verdict.value == got and (verdict.value is None or type(verdict.value) is int)
    if got == value:
        assert verdict.code is None
        return
    room = max(0, changes["room"]) if isinstance(changes["room"], int) else 0
    room = room // 1000 * 1000 if kind is K.VCPUS else room
    assert verdict.code is R.HOST_COMMIT_LIMIT and verdict.numbers == {"need": need, "room": room}
    assert str(kind) in verdict.detail and str(room if got is None else got) in verdict.detail


def test_a_cut_from_unlimited_that_promises_more_needs_room() -> None:
    seen = view(K.CPU_QUOTA, in_force=UNLIMITED, vcpus=2, reading=reading(cpu_used_millicores=2500))
    assert check(K.CPU_QUOTA, 3500, replace(seen, room=1500)).value == 3500
    verdict = check(K.CPU_QUOTA, 3500, replace(seen, room=1499))
    assert (verdict.value, verdict.code, verdict.numbers) == (None, R.HOST_COMMIT_LIMIT, {"room": 1499})
    assert "1499" in verdict.detail and "3500" in verdict.detail
    assert check(K.NET_RX, 9 * 10**8, view(K.NET_RX, in_force=UNLIMITED, room=-1)).value == 9 * 10**8
    small = replace(seen, reading=reading(cpu_used_millicores=1))
    assert check(K.CPU_QUOTA, 2000, replace(small, room=-1)).value == 2000
    assert check(K.CPU_QUOTA, 2001, replace(small, room=0)).code is R.HOST_COMMIT_LIMIT
    assert check(K.CPU_QUOTA, 2001, replace(small, room=None)).value == 2001


def test_what_is_left_of_a_clip_must_be_tellable() -> None:
    near = view(in_force=400, reading=reading(cpu_used_millicores=355))  # with its tenth 390: a quota rounds by 10
    assert check(K.CPU_QUOTA, 200, near).code is R.BELOW_WORKING_SET and check(K.CPU_QUOTA, 200, near).value is None
    assert check(K.CPU_QUOTA, 200, view(in_force=400, reading=reading(cpu_used_millicores=354))).value == 389


def test_a_ceiling_forbids_unlimited_however_little_unlimited_would_be() -> None:
    capped = msgspec.structs.replace(policy(cpu_ceiling_millicores=3000), capabilities=CAN)
    verdict = check(K.CPU_QUOTA, UNLIMITED, view(domain=capped, vcpus=1))
    assert (verdict.value, verdict.code) == (3000, R.ABOVE_CEILING)
    assert verdict.numbers == {"asked": UNLIMITED, "allowed": 3000} and "at most 3000" in verdict.detail


# Rules over time


def test_flap_budget() -> None:
    turned = (ago(20_000), ago(10_000), ago(100))
    for kind in TAKES:
        tired = view(kind, turning=True, turned_at_ns=turned[1:])
        verdict = check(kind, LESS[kind], tired)
        assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.FLAP_BUDGET, (21_600 - 10_000) * S)
        assert verdict.numbers == {"turns": 2, "allowed": 2}
        assert check(kind, LESS[kind], replace(tired, turned_at_ns=turned)).wait_ns == (21_600 - 10_000) * S
        assert check(kind, LESS[kind], replace(tired, turned_at_ns=turned[:1])).value is not None
        assert check(kind, LESS[kind], replace(tired, turning=False)).value is not None  # going on downwards is no turn
        assert check(kind, MORE[kind], tired).value is not None  # growth is never refused for it
        assert check(kind, LESS[kind], tired, restoring=True).value is not None
    never = check(K.NET_RX, LESS[K.NET_RX], view(K.NET_RX, turning=True), GuardConfig(flap_reversals=0))
    assert (never.code, never.wait_ns) == (R.FLAP_BUDGET, 0)


def test_memory_lost_within_an_hour() -> None:
    def shrunk(kind: StepKind, now: int, peak: int | None, **how: bool) -> Verdict:
        seen = view(kind, in_force=now, memory_bytes=now, memory_sum_bytes=now)
        return check(kind, 0 if kind is not K.MEMORY else GIB, replace(seen, memory_peak=None if peak is None else (ago(600), peak)), **how)

    assert shrunk(K.MEMORY, 4 * GIB, None).code is R.STEP_TOO_LARGE
    assert shrunk(K.MEMORY, 4 * GIB, 7 * GIB).value == 4 * GIB - 4 * GIB * 50 // 1000
    near = shrunk(K.MEMORY, 4 * GIB, 8 * GIB - 200 * MIB)
    assert (near.value, near.code) == (4 * GIB - 100 * MIB, R.RATE_OF_CHANGE)
    gone = shrunk(K.MEMORY, 4 * GIB, 8 * GIB)
    assert (gone.value, gone.code, gone.wait_ns) == (None, R.RATE_OF_CHANGE, 3000 * S)
    assert shrunk(K.MEMORY, 4 * GIB, 9 * GIB).code is R.RATE_OF_CHANGE
    assert shrunk(K.MEMORY, 4 * GIB, 9 * GIB, restoring=True).code is R.STEP_TOO_LARGE
    assert shrunk(K.VIRTIO_MEM, 4 * GIB, 8 * GIB).code is R.RATE_OF_CHANGE
    assert shrunk(K.DIMM, 4 * GIB, 8 * GIB).code is R.RATE_OF_CHANGE
    assert "of 8589934592 bytes" in gone.detail and gone.detail.startswith("memory: 4294967296")
    third = GuardConfig(memory_cut_per_hour_permille=333, memory_shrink_max_permille=1000)
    cut = check(K.MEMORY, GIB, view(K.MEMORY, reading=reading(memory_used_bytes=MIB)), third)
    assert (cut.value, cut.code) == (4 * GIB - 4 * GIB * 333 // 1000, R.RATE_OF_CHANGE) and type(cut.value) is int
    spent = view(K.MEMORY, memory_peak=(ago(1), 4 * GIB + 4 * GIB // 2))
    assert check(K.MEMORY, GIB, spent, third).wait_ns == 3599 * S
    # of a VM with devices the sum counts
    both = view(K.MEMORY, memory_sum_bytes=6 * GIB, memory_peak=(ago(1), 12 * GIB))
    assert check(K.MEMORY, GIB, both).code is R.RATE_OF_CHANGE
    assert check(K.MEMORY, GIB, replace(both, memory_peak=(ago(1), 11 * GIB))).code is R.STEP_TOO_LARGE
    high = view(K.MEMORY_HIGH, memory_peak=(ago(1), 99 * GIB))  # takes nothing of what is promised
    assert check(K.MEMORY_HIGH, GIB, high).code is R.STEP_TOO_LARGE


def test_blast_radius() -> None:
    for kind in TAKES:
        cut = tuple(ago(s) for s in (50, 40, 30, 20, 10))
        verdict = check(kind, LESS[kind], view(kind, cuts_at_ns=cut))
        assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.BLAST_RADIUS, 10 * S)
        assert verdict.numbers == {"cut": 5, "allowed": 5}
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=(ago(59), *cut))).wait_ns == 10 * S
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=cut[1:])).value is not None
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=cut, cut_recently=True)).value is not None
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=cut), restoring=True).value is not None
        assert check(kind, MORE[kind], view(kind, cuts_at_ns=cut)).value is not None
    alone = view(K.NET_RX, vms=1)
    assert check(K.NET_RX, LESS[K.NET_RX], alone).value is not None  # at least one
    assert check(K.NET_RX, LESS[K.NET_RX], replace(alone, cuts_at_ns=(NOW,))).code is R.BLAST_RADIUS


def test_an_open_circuit_stops_shrinks_and_moves_and_no_growth() -> None:
    for kind in TAKES:
        broken = view(kind, circuit_open_until_ns=NOW + 5 * S)
        for how in ({}, {"restoring": True}):
            verdict = check(kind, LESS[kind], broken, **how)
            assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.CIRCUIT_OPEN, 5 * S)
        assert check(kind, MORE[kind], broken, unplanned=True).value is not None
        assert check(kind, LESS[kind], replace(broken, circuit_open_until_ns=NOW)).value is not None
    assert check(K.MIGRATE, UNLIMITED, view(K.MIGRATE, circuit_open_until_ns=NOW + S)).code is R.CIRCUIT_OPEN


def test_growth_without_a_plan_is_bounded() -> None:
    for kind, base in ((K.CPU_QUOTA, 1500), (K.VCPUS, 2), (K.NET_RX, 6 * 10**7), (K.NET_TX, 6 * 10**7)):
        seen = view(kind, budget_base=base, budget_ends_ns=NOW + 7 * S)
        greedy = check(kind, 4 * base, seen, unplanned=True)
        if 2 * base > IN_FORCE[kind]:
            assert (greedy.value, greedy.code) == (2 * base, R.GROWTH_BUDGET)
            assert f"began with {base}, at most {2 * base}" in greedy.detail
        else:
            assert (greedy.value, greedy.code, greedy.wait_ns) == (None, R.GROWTH_BUDGET, 7 * S)
        assert check(kind, 4 * base, seen).code is not R.GROWTH_BUDGET  # planned, or ordered
        used_up = check(kind, 4 * base, replace(seen, in_force=2 * base), unplanned=True)
        assert (used_up.value, used_up.code, used_up.wait_ns) == (None, R.GROWTH_BUDGET, 7 * S)
        assert used_up.numbers == {"in_force": 2 * base, "allowed": 2 * base}
        assert check(kind, 4 * base, replace(seen, in_force=2 * base, budget_ends_ns=None), unplanned=True).wait_ns == 0
        assert check(kind, 2 * base + 1, replace(seen, in_force=base, budget_base=None), unplanned=True).code is not R.GROWTH_BUDGET
    memory = check(K.MEMORY, 8 * GIB, view(K.MEMORY, budget_base=2 * GIB + 50 * MIB), unplanned=True)
    assert (memory.value, memory.code) == (4 * GIB + 100 * MIB, R.GROWTH_BUDGET)
    assert check(K.MEMORY, 8 * GIB, view(K.MEMORY, budget_base=4 * GIB), unplanned=True).code is R.STEP_TOO_LARGE
    assert check(K.CPU_QUOTA, UNLIMITED, view(budget_base=1500), unplanned=True).value == 3000
    assert check(K.CPU_QUOTA, UNLIMITED, view(budget_base=4000), unplanned=True).value == UNLIMITED
    third = check(K.CPU_QUOTA, 8000, view(budget_base=2001), GuardConfig(growth_budget_permille=333), unplanned=True)
    assert third.value == 2001 + 2001 * 333 // 1000 and type(third.value) is int
    assert check(K.NET_TX_RATE, 10**9, view(K.NET_TX_RATE, budget_base=10**7), unplanned=True).value == 2 * 10**7
    assert check(K.NET_TX_RATE, 10**9, view(K.NET_TX_RATE, in_force=0, budget_base=0), unplanned=True).value == 10**6
    # a budget of nothing still lets one vCPU be added: half of one is none
    assert check(K.VCPUS, 8, view(K.VCPUS, budget_base=4), GuardConfig(growth_budget_permille=0), unplanned=True).value == 5
    assert check(K.DISK_BYTES, 200 * MIB, view(K.DISK_BYTES, budget_base=1), unplanned=True).value == 200 * MIB  # nothing is promised


def test_after_an_oom_memory_shrinks_by_nobody_for_a_day() -> None:
    for kind in MEMORY:
        killed = view(kind, oom_at_ns=ago(86_399))
        for how in ({}, {"restoring": True}):
            verdict = check(kind, LESS[kind], killed, **how)
            assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.AFTER_OOM, S)
        assert check(kind, LESS[kind], replace(killed, oom_at_ns=ago(86_400))).value is not None
        assert check(kind, MORE[kind], killed).value is not None
    assert check(K.CPU_QUOTA, LESS[K.CPU_QUOTA], view(oom_at_ns=NOW)).value is not None


def test_relief_after_an_oom_does_not_wait_for_a_back_off() -> None:
    waiting = view(K.MEMORY, growth_waits_until_ns=NOW + 100 * S)
    assert check(K.MEMORY, 5 * GIB, waiting).code is R.BACKING_OFF
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=ago(59))).value is not None
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=ago(60))).code is R.BACKING_OFF
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=NOW + S)).code is R.BACKING_OFF  # the clock was set back
    assert check(K.NET_RX, 2 * 10**8, view(K.NET_RX, growth_waits_until_ns=NOW + S, oom_at_ns=NOW)).code is R.BACKING_OFF
    shrink = view(K.MEMORY, shrink_waits_until_ns=NOW + S, oom_at_ns=NOW)
    assert check(K.MEMORY, 3 * GIB, shrink).code is R.BACKING_OFF
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=NOW, busy=True)).code is R.VM_BUSY


def test_what_an_owners_undo_still_has_to_respect() -> None:
    hurried: dict[str, object] = {"shrunk_at_ns": NOW, "grown_at_ns": NOW}
    for kind in TAKES:
        assert check(kind, LESS[kind], view(kind, **hurried)).code is R.COOLDOWN
        assert check(kind, LESS[kind], view(kind, **hurried), restoring=True).value is not None
        assert check(kind, LESS[kind], view(kind, reading=None), restoring=True).code is R.READING_STALE
        assert check(kind, LESS[kind], view(kind, reading_at_ns=ago(30.1)), restoring=True).code is R.READING_STALE
        assert check(kind, LESS[kind], view(kind, reading_at_ns=ago(30)), restoring=True).value is not None
    pressed = reading(psi_memory_some_permille=50)
    assert check(K.MEMORY, 2 * GIB, view(K.MEMORY, reading=pressed), restoring=True).code is R.PRESSURE_VETO
    assert check(K.MEMORY, GIB, view(K.MEMORY, in_force=1150 * MIB), restoring=True).code is R.BELOW_WORKING_SET
    assert check(K.CPU_QUOTA, 1, view(in_force=101, reading=reading(cpu_used_millicores=1)), restoring=True).code is R.BELOW_FLOOR
    assert check(K.CPU_QUOTA, 4000, view(room=5), restoring=True).code is R.HOST_COMMIT_LIMIT


def test_cooldowns_are_of_the_later_of_shrink_and_growth() -> None:
    both = check(K.CPU_QUOTA, 1500, view(shrunk_at_ns=ago(59), grown_at_ns=ago(100)))
    assert (both.code, both.wait_ns) == (R.COOLDOWN, 20 * S) and "growth" in both.detail
    shrink = check(K.CPU_QUOTA, 1500, view(shrunk_at_ns=ago(10), grown_at_ns=ago(100)))
    assert shrink.wait_ns == 50 * S and "shrink" in shrink.detail and "50 s" in shrink.detail
    assert check(K.CPU_QUOTA, 1500, view(shrunk_at_ns=ago(60), grown_at_ns=ago(120))).value is not None


# Moves


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"domain": None}, R.UNKNOWN_VM),
        ({"domain": msgspec.structs.replace(DOMAIN, running=False)}, R.VM_NOT_RUNNING),
        ({"domain": policy(excluded=True)}, R.VM_EXCLUDED),
        ({"domain": msgspec.structs.replace(DOMAIN, capabilities=Capabilities())}, R.NOT_CAPABLE),
        ({"moving": True}, R.VM_BUSY),
        ({"busy": True}, R.VM_BUSY),
        ({"growth_waits_until_ns": NOW + S}, R.BACKING_OFF),
        ({"vm_steps": 12}, R.RATE_LIMITED),
        ({"host_steps": 240}, R.RATE_LIMITED),
        ({"reading": None}, R.READING_STALE),
        ({"reading_at_ns": ago(31)}, R.READING_STALE),
        ({"reading": reading(cpu_throttled_permille=20)}, R.PRESSURE_VETO),
        ({"reading": reading(memory_swap_bytes_per_s=MIB)}, R.PRESSURE_VETO),
        ({"room": -1}, None),
        ({"turning": True, "turned_at_ns": (NOW, NOW), "cuts_at_ns": (NOW,) * 9, "shrunk_at_ns": NOW}, None),
    ],
)
def test_a_move(changes: dict[str, object], code: RefusalCode | None) -> None:
    verdict = check(K.MIGRATE, 10**9, view(K.MIGRATE, **changes))
    assert (verdict.value, verdict.code) == (10**9 if code is None else None, code)
    assert code is None or verdict.detail
    assert code is not R.VM_BUSY or verdict.detail in ("a step for this VM is in flight", "a step for this VM and lever is in flight")
    assert verdict.wait_ns == (S if code in (R.VM_BUSY, R.BACKING_OFF, R.RATE_LIMITED) else 0)


def test_a_move_may_use_all_of_the_network_or_something_of_it() -> None:
    assert check(K.MIGRATE, UNLIMITED, view(K.MIGRATE)).value == UNLIMITED
    assert check(K.MIGRATE, 0, view(K.MIGRATE)).code is R.INVALID_VALUE


# Properties over all levers at once

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


STALE = reading(memory_reading_age_ms=30_001)
LOW = msgspec.structs.replace(policy(cpu_floor_millicores=900, cpu_ceiling_millicores=1500), capabilities=CAN)


@pytest.mark.parametrize(
    ("kind", "value", "changes", "code", "detail"),
    [
        (K.NET_RX, 1, {"domain": None}, R.UNKNOWN_VM, "no VM vm-1 on this host"),
        (K.NET_RX, 1, {"domain": msgspec.structs.replace(DOMAIN, running=False)}, R.VM_NOT_RUNNING, "web is not running"),
        (K.NET_RX, 1, {"domain": policy(excluded=True)}, R.VM_EXCLUDED, "policy opts web out"),
        (K.NET_RX, 1, {"yielded_until_ns": NOW + 1}, R.YIELDED, "somebody else changed web: 0 s to go"),
        (K.NET_RX, 0, {}, R.INVALID_VALUE, "net_rx 0: allowed -1 (unlimited) or more than 0"),
        (K.VCPUS, 9, {}, R.ABOVE_DOMAIN_MAXIMUM, "vcpus 9: the domain allows 8"),
        (K.NET_RX, 1, {"in_force": None}, R.READING_STALE, "net_rx in force is not known: neither growth nor shrink can be judged"),
        (K.NET_RX, 10**8, {}, R.NOTHING_TO_DO, "net_rx is 100000000 already"),
        (K.NET_RX, 1, {"busy": True}, R.VM_BUSY, "a step for this VM and lever is in flight"),
        (K.MIGRATE, 1, {"moving": True}, R.VM_BUSY, "a step for this VM is in flight"),
        (K.NET_RX, 1, {"shrink_waits_until_ns": NOW + 1}, R.BACKING_OFF, "earlier steps failed: next try in 0 s"),
        (K.NET_RX, 1, {"vm_steps": 12}, R.RATE_LIMITED, "12 steps for this VM in the last minute"),
        (K.NET_RX, 1, {"host_steps": 240}, R.RATE_LIMITED, "240 steps on this host in the last minute"),
        (K.CPU_QUOTA, 2500, {"domain": LOW}, R.ABOVE_CEILING, "cpu_quota in force is 2000, at most 1500"),
        (K.CPU_QUOTA, 2500, {"room": 5}, R.HOST_COMMIT_LIMIT, "cpu_quota: 500 more asked, the host has room for 5"),
        (K.CPU_QUOTA, 2500, {"room": 300}, R.HOST_COMMIT_LIMIT, "cpu_quota 2500: the host has room for 2300"),
        (K.MEMORY, GIB, {"memory_falling": True}, R.VM_BUSY, "memory of this VM is being taken by another lever"),
        (K.MEMORY, GIB, {"reading": None}, R.READING_STALE, "no fresh sample of this VM"),
        (K.MEMORY, GIB, {"reading": reading(memory_used_bytes=None)}, R.READING_STALE, "no reading of use for memory"),
        (K.MEMORY, GIB, {"reading": STALE}, R.READING_STALE, "no fresh reading from the guest"),
        (K.MEMORY, GIB, {"reading": reading(guest_oom_kills=1)}, R.PRESSURE_VETO, "memory: the VM ran into its limit in the last period"),
        (K.MEMORY, GIB, {"oom_at_ns": ago(86_400) + 1}, R.AFTER_OOM, "the guest killed for want of memory, 0 s to go"),
        (K.NET_RX, 1, {"circuit_open_until_ns": NOW + 1}, R.CIRCUIT_OPEN, "too many steps failed on this host: 0 s to go"),
        (K.NET_RX, 1, {"shrunk_at_ns": ago(60) + 1}, R.COOLDOWN, "net_rx: last shrink too recent, 0 s to go"),
        (K.NET_RX, 1, {"grown_at_ns": ago(120) + 1}, R.COOLDOWN, "net_rx: last growth too recent, 0 s to go"),
        (K.NET_RX, 1, {"turning": True, "turned_at_ns": (NOW, NOW)}, R.FLAP_BUDGET, "net_rx turned 2 times of late, at most 2"),
        (K.NET_RX, 1, {"cuts_at_ns": (NOW,) * 5}, R.BLAST_RADIUS, "5 of 10 VMs were cut within the minute, at most 5"),
        (K.CPU_QUOTA, 1, {"in_force": 1000, "domain": LOW}, R.BELOW_FLOOR, "cpu_quota 1: at least 900"),
        (K.CPU_QUOTA, 1, {"in_force": 400}, R.BELOW_WORKING_SET, "cpu_quota: measured use and margin need 330"),
        (K.CPU_QUOTA, 1, {}, R.STEP_TOO_LARGE, "cpu_quota 1: one step goes to 1000 at most"),
        (K.NET_RX, 9 * 10**8, {"in_force": UNLIMITED, "room": None}, None, ""),
    ],
)
def test_every_refusal_says_what_it_is_about(
    kind: StepKind, value: int, changes: dict[str, object], code: RefusalCode | None, detail: str
) -> None:
    verdict = check(kind, value, view(kind, **changes))
    assert (verdict.code, verdict.detail) == (code, detail)
    assert verdict.value is not None or verdict.numbers is not None


def test_the_guests_reading_and_the_samples_age_count_together() -> None:
    def aged(reading_s: int, guest_ms: int) -> RefusalCode | None:
        return check(K.MEMORY, 3 * GIB, view(K.MEMORY, reading=reading(memory_reading_age_ms=guest_ms), reading_at_ns=ago(reading_s))).code

    assert aged(0, 30_000) is R.STEP_TOO_LARGE and aged(10, 20_000) is R.STEP_TOO_LARGE
    assert aged(0, 30_001) is R.READING_STALE and aged(10, 20_001) is R.READING_STALE


def test_rates_are_told_with_their_figures() -> None:
    busy = check(K.NET_RX, 1, view(K.NET_RX, vm_steps=13))
    assert (busy.wait_ns, busy.numbers) == (S, {"vm": 13})
    assert check(K.NET_RX, 1, view(K.NET_RX, host_steps=240)).wait_ns == S
    assert check(K.NET_RX, 1, view(K.NET_RX, busy=True)).wait_ns == S
    assert check(K.VCPUS, 9, view(K.VCPUS)).numbers == {"asked": 9, "allowed": 8}
    assert check(K.NET_RX, 10**8, view(K.NET_RX)).numbers == {"in_force": 10**8}
