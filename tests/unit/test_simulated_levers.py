"""The simulated host's newer levers: vCPUs that go, memory devices, gentle reclaim, disk limits; and old snapshots."""

from __future__ import annotations

import msgspec
import pytest
from simulated_world import World, number, steady_vm, workload

from agent.adapters.simulated_vm import SimulatedVm, SimulationFaults
from agent.sampling.derive import derive
from shared.errors import ConfigError, Refusal
from shared.model import Allocation
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, UNLIMITED


def small_guest(**more: int) -> World:
    return World(workload(steady_vm(initial=Allocation(vcpus=2, memory_bytes=1536 * MIB), **more)))


def test_a_vcpu_is_unplugged_when_the_guest_gets_to_it() -> None:
    world = World(workload(steady_vm(cpu_millicores=2000)))
    world.host.submit("id-vm", StepKind.VCPUS, 1)
    assert world.after(4).vcpus == 2
    before = world.after(1.01)
    assert before.vcpus == 1
    assert number(world.after(10).cpu_used_ns_total) - number(before.cpu_used_ns_total) == pytest.approx(10e9, rel=1e-6)
    assert world.vm_truth()["violation_s"]["cpu_millicores"] == pytest.approx(10.01)


def test_a_guest_may_keep_its_vcpu_for_ever() -> None:
    world = World(workload(steady_vm()), SimulationFaults(keeping_guests=("vm",)))
    world.host.submit("id-vm", StepKind.VCPUS, 1)
    world.host.submit("id-vm", StepKind.DIMM, 256 * MIB)
    world.clock.advance(10)
    world.host.submit("id-vm", StepKind.DIMM, 0)
    reading = world.after(3600)
    assert (reading.vcpus, reading.dimm_bytes) == (2, 256 * MIB)


def test_a_vcpu_that_is_offline_does_no_work_and_is_the_first_to_be_unplugged() -> None:
    world = World(workload(steady_vm(cpu_millicores=2000)))
    world.host.submit("id-vm", StepKind.VCPUS_ONLINE, 1)
    before = world.after(1)
    assert (before.vcpus, before.vcpus_online) == (2, 1)
    assert number(world.after(10).cpu_used_ns_total) - number(before.cpu_used_ns_total) == pytest.approx(10e9, rel=1e-6)
    world.host.submit("id-vm", StepKind.VCPUS, 1)
    reading = world.after(6)
    assert (reading.vcpus, reading.vcpus_online) == (1, 1)
    with pytest.raises(Refusal) as refusal:
        world.host.submit("id-vm", StepKind.VCPUS_ONLINE, 2)
    assert refusal.value.code is RefusalCode.ABOVE_DOMAIN_MAXIMUM


def test_period_and_throttled_periods_are_counted_while_there_is_a_quota() -> None:
    world = World(workload(steady_vm()))
    assert world.after(10).periods_total == 0
    world.host.submit("id-vm", StepKind.CPU_QUOTA, 500)
    world.host.submit("id-vm", StepKind.CPU_PERIOD, 50_000)
    before = world.after(1)
    after = world.after(10)
    assert number(after.periods_total) - number(before.periods_total) == pytest.approx(200, abs=1)
    assert number(after.throttled_periods_total) - number(before.throttled_periods_total) == pytest.approx(200, abs=1)
    assert after.cpu_quota_millicores == 500


def test_virtio_mem_gives_and_takes_but_for_what_the_guest_needs_and_one_block() -> None:
    world = small_guest(memory_bytes=1400 * MIB)
    world.host.submit("id-vm", StepKind.VIRTIO_MEM, 1024 * MIB + 5)
    reading = world.after(5)
    assert reading.virtio_mem_bytes == GIB
    assert reading.memory_actual_bytes == 2560 * MIB
    world.host.submit("id-vm", StepKind.MEMORY, 512 * MIB)
    assert world.after(60).memory_actual_bytes == 1536 * MIB, "the balloon takes what virtio-mem has brought"
    world.host.submit("id-vm", StepKind.VIRTIO_MEM, 0)
    kept = number(world.after(60).virtio_mem_bytes)
    assert kept == pytest.approx(1400 * MIB * 1.02 - 512 * MIB, abs=4 * MIB)
    world.host.submit("id-vm", StepKind.MEMORY, 1536 * MIB)
    assert world.after(60).virtio_mem_bytes == 2 * MIB
    assert world.vm_truth()["violation_any_s"] == 0


def test_a_dimm_comes_whole_and_goes_only_when_it_is_not_needed() -> None:
    world = small_guest(memory_bytes=1700 * MIB)
    assert world.vm_truth()["violation_any_s"] == 0
    world.host.submit("id-vm", StepKind.DIMM, 256 * MIB)
    short = world.after(2)
    assert (short.dimm_bytes, number(short.psi_memory_some_us_total) > 0) == (0, True)
    calm = world.after(2)
    assert calm.dimm_bytes == 256 * MIB
    assert world.host.allocation("id-vm").memory_bytes == 1536 * MIB
    assert world.after(10).psi_memory_some_us_total == calm.psi_memory_some_us_total
    world.host.submit("id-vm", StepKind.DIMM, 128 * MIB)
    assert world.after(60).dimm_bytes == 256 * MIB, "the guest needs it"
    world.host.submit("id-vm", StepKind.MEMORY, 2 * GIB)
    world.host.submit("id-vm", StepKind.DIMM, 0)
    assert world.after(10).dimm_bytes == 0


def test_a_sample_takes_memory_devices_apart() -> None:
    world = small_guest()
    world.host.submit("id-vm", StepKind.VIRTIO_MEM, 256 * MIB)
    world.host.submit("id-vm", StepKind.DIMM, 128 * MIB)
    world.clock.advance(15)
    before = world.host.read()
    world.clock.advance(5)
    sample = derive(before, world.host.read(), {"id-vm": 8 * GIB}).vms["id-vm"]
    assert (sample.memory_allocated_bytes, sample.virtio_mem_bytes, sample.dimm_bytes) == (1536 * MIB, 256 * MIB, 128 * MIB)
    assert number(sample.memory_used_bytes) == pytest.approx(GIB, rel=0.004)
    assert sample.allocation() == world.host.allocation("id-vm")


def test_memory_high_reclaims_what_is_not_needed_and_slows_what_is() -> None:
    world = small_guest()
    world.host.submit("id-vm", StepKind.MEMORY_HIGH, 1200 * MIB)
    gentle = world.after(30)
    assert (gentle.memory_high_events_total, gentle.psi_memory_some_us_total) == (0, 0), "the guest needs less"
    world.host.submit("id-vm", StepKind.MEMORY_HIGH, 600 * MIB)
    hard = world.after(600)
    assert number(hard.memory_rss_bytes) == pytest.approx(600 * MIB, rel=0.01)
    assert number(hard.memory_high_events_total) > 0
    assert number(hard.psi_memory_some_us_total) > 0
    assert (hard.guest_oom_kills_total, world.vm_truth()["ooms"], world.vm_truth()["violation_any_s"]) == (0, 0, 0)
    world.host.submit("id-vm", StepKind.MEMORY_HIGH, UNLIMITED)
    free = world.after(10)
    assert world.after(10).psi_memory_some_us_total == free.psi_memory_some_us_total


@pytest.mark.parametrize(("kind", "value"), [(StepKind.DISK_BYTES, 4 * MIB), (StepKind.DISK_OPS, 256)])
def test_a_disk_limit_censors_what_is_seen_of_the_disk(kind: StepKind, value: int) -> None:
    world = World(workload(steady_vm(disk_read_bytes_per_s=12 * MIB, disk_write_bytes_per_s=4 * MIB)))
    world.clock.advance(5)
    first = world.host.read()
    world.clock.advance(5)
    free = derive(first, world.host.read(), {}).vms["id-vm"]
    world.host.submit("id-vm", kind, value)
    world.clock.advance(5)
    first = world.host.read()
    world.clock.advance(5)
    held = derive(first, world.host.read(), {}).vms["id-vm"]
    assert free.disk_read_bytes_per_s == pytest.approx(12 * MIB, rel=0.01)
    assert held.disk_read_bytes_per_s == pytest.approx(3 * MIB, rel=0.01)
    assert held.disk_write_bytes_per_s == pytest.approx(MIB, rel=0.01)
    assert held.disk_read_ops_per_s == pytest.approx(192, abs=2)
    assert number(held.psi_io_some_permille) > number(free.psi_io_some_permille) + 700
    assert number(held.disk_latency_us) == pytest.approx(10 * number(free.disk_latency_us), rel=0.01)


def test_weight_and_guarantee_are_kept() -> None:
    world = World(workload(steady_vm()))
    world.host.submit("id-vm", StepKind.DISK_WEIGHT, 500)
    world.host.submit("id-vm", StepKind.NET_TX_RATE, 2_000_000)
    reading = world.after(1)
    assert (reading.disk_weight, reading.net_tx_rate_bits_per_s) == (500, 2_000_000)


def test_the_guests_kernel_kills_before_the_vm_is_lost() -> None:
    world = World(workload(steady_vm(memory_bytes=4 * GIB)))
    calm = world.after(115)
    assert calm.guest_oom_kills_total == 0
    killed = world.after(10)
    assert (killed.guest_oom_kills_total, killed.epoch) == (1, calm.epoch), "the same epoch: a sampler sees it"
    lost = world.after(60)
    assert lost.epoch != calm.epoch
    assert lost.guest_oom_kills_total == 2
    assert world.vm_truth()["ooms"] == 1


def test_a_snapshot_of_the_version_before_is_read() -> None:
    world = World(workload(steady_vm()))
    world.host.submit("id-vm", StepKind.CPU_QUOTA, 700)
    world.clock.advance(10)
    state = msgspec.msgpack.decode(world.host.snapshot())
    state["vms"]["id-vm"] = state["vms"]["id-vm"][: len(SimulatedVm.FIRST_STATE)]
    later = World(workload(steady_vm()), snapshot=msgspec.msgpack.encode(state), at_s=20)
    assert later.host.allocation("id-vm") == world.host.allocation("id-vm")
    state["vms"]["id-vm"].pop()
    with pytest.raises(ConfigError, match="snapshot"):
        World(workload(steady_vm()), snapshot=msgspec.msgpack.encode(state))


def test_a_snapshot_keeps_the_new_levers() -> None:
    world = World(workload(steady_vm()))
    for kind, value in ((StepKind.DISK_OPS, 100), (StepKind.VCPUS_ONLINE, 1), (StepKind.VIRTIO_MEM, 64 * MIB), (StepKind.DIMM, 128 * MIB)):
        world.host.submit("id-vm", kind, value)
    world.clock.advance(10)
    later = World(workload(steady_vm()), snapshot=world.host.snapshot(), at_s=10)
    assert later.host.allocation("id-vm") == world.host.allocation("id-vm")
    assert later.host.allocation("id-vm").disk_ops_per_s == 100
