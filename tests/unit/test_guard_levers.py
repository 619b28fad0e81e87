"""The guard lever by lever: which way each may move, by how much, and what it never takes."""

from __future__ import annotations

import msgspec
import pytest
from guard_scene import CAN, DOMAIN, IN_FORCE, LESS, MORE, NOW, K, R, S, check, policy, reading, view
from msgspec.structs import replace

from agent.acting.guard import Verdict
from agent.acting.levers import DIMM_BYTES, WEIGHTS, shows, tellable
from shared.config import GuardConfig
from shared.model import Capabilities, VmSample
from shared.plan import StepKind
from shared.units import GIB, MIB, UNLIMITED


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
