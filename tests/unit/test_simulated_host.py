"""The simulated host's model: what each lever and shortage does to counters, readings and ground truth."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_world import START_S, World, number, steady_vm, workload

from agent.adapters.simulated_host import SimulatedHost, share_out
from agent.adapters.simulated_vm import SimulationFaults
from agent.ports import RawVm
from agent.sampling.derive import derive
from shared.clock import ManualClock
from shared.errors import ConfigError, HostError, Refusal
from shared.model import Allocation
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED


def test_cpu_above_the_quota_is_throttled_and_counted_as_violation() -> None:
    world = World(workload(steady_vm(initial=Allocation(vcpus=2, cpu_quota_millicores=250, memory_bytes=2 * GIB))))
    reading = world.after(60)
    assert reading.cpu_used_ns_total == 15 * NS_PER_S
    assert reading.throttled_ns_total == 45 * NS_PER_S
    assert reading.run_delay_ns_total == reading.throttled_ns_total  # none left once a sampler takes the throttling out
    truth = world.vm_truth()
    assert truth["violation_s"]["cpu_millicores"] == truth["violation_any_s"] == pytest.approx(60)
    assert truth["unmet"]["cpu_millicores"] == pytest.approx(750 * 60)
    assert truth["allocated"]["cpu_millicores"] == truth["used"]["cpu_millicores"] == pytest.approx(250 * 60)


def test_a_sample_derived_from_two_readings_says_what_happened() -> None:
    tight = Allocation(vcpus=2, cpu_quota_millicores=250, memory_bytes=2 * GIB)
    world = World(workload(steady_vm(initial=tight)), at_s=2.3)
    before = world.host.read()
    world.clock.advance(5)
    sample = derive(before, world.host.read(), {"id-vm": 8 * GIB}).vms["id-vm"]
    assert (sample.cpu_used_millicores, sample.cpu_throttled_permille, sample.cpu_ready_permille) == (250, 750, 0)
    assert number(sample.memory_used_bytes) == pytest.approx(GIB, rel=0.003)
    assert number(sample.memory_reading_age_ms) < 5000
    assert number(sample.net_rx_bits_per_s) > 0
    assert sample.allocation() == world.host.allocation("id-vm")


def test_cpu_above_the_vcpus_saturates_them_without_throttling() -> None:
    world = World(workload(steady_vm(cpu_millicores=3000)))
    reading = world.after(10)
    assert (reading.cpu_used_ns_total, reading.throttled_ns_total, reading.run_delay_ns_total) == (20 * NS_PER_S, 0, 0)
    assert world.vm_truth()["violation_s"]["cpu_millicores"] == pytest.approx(10)


def test_a_full_host_serves_by_shares_and_the_loss_is_run_delay() -> None:
    heavy = Allocation(vcpus=2, cpu_shares=3072, memory_bytes=2 * GIB)
    world = World(workload(steady_vm("a", initial=heavy, cpu_millicores=2000), steady_vm("b", cpu_millicores=2000), cpu=2040))
    world.clock.advance(10)
    raw = world.host.read()
    first, second = raw.vms
    assert [number(vm.cpu_used_ns_total) / NS_PER_S for vm in (first, second)] == pytest.approx([15, 5])
    assert [number(vm.run_delay_ns_total) / NS_PER_S for vm in (first, second)] == pytest.approx([5, 15])
    assert first.throttled_ns_total == 0
    assert number(raw.cpu_busy_ns_total) == pytest.approx(20.4 * NS_PER_S)
    assert number(raw.psi_cpu_some_us_total) == pytest.approx(5e6)


def test_share_out_gives_what_small_ones_leave() -> None:
    assert share_out([100, 900, 900], [1, 1, 1], 1100) == pytest.approx([100, 500, 500])
    assert sum(share_out([5, 7], [2, 1], 100)) == 12


def test_a_need_above_the_balloon_swaps_and_slows_the_cpu() -> None:
    world = World(workload(steady_vm(initial=Allocation(vcpus=2, memory_bytes=900 * MIB))))
    reading = world.after(20)
    assert reading.memory_usable_bytes == 0
    assert number(reading.major_faults_total) > 0
    assert number(reading.swap_bytes_total) > 0
    assert number(reading.psi_memory_some_us_total) > number(reading.psi_memory_full_us_total) > 0
    assert number(reading.cpu_used_ns_total) < 20 * NS_PER_S
    truth = world.vm_truth()
    assert truth["violation_s"]["memory_bytes"] == pytest.approx(20)
    assert truth["violation_s"]["cpu_millicores"] == 0  # the slower work is memory's fault, not counted twice


def test_a_host_out_of_memory_presses_on_its_vms() -> None:
    world = World(workload(steady_vm("a"), steady_vm("b"), memory=1800 * MIB))
    world.clock.advance(20)
    raw = world.host.read()
    assert raw.memory_available_bytes == 0
    assert number(raw.psi_memory_some_us_total) > 0
    assert all(number(vm.psi_memory_some_us_total) > 0 for vm in raw.vms)


def test_long_and_deep_shortage_kills_once_in_a_while_with_a_new_epoch() -> None:
    world = World(workload(steady_vm(initial=Allocation(vcpus=2, memory_bytes=512 * MIB))))
    before = world.after(100)
    assert world.vm_truth()["ooms"] == 0
    after = world.after(100)
    assert world.vm_truth()["ooms"] == 1
    assert after.epoch != before.epoch
    assert number(after.cpu_used_ns_total) < number(before.cpu_used_ns_total)


def test_the_network_carries_up_to_the_ceiling_and_drops_the_rest() -> None:
    limits = Allocation(vcpus=2, memory_bytes=2 * GIB, net_rx_bits_per_s=4_000_000)
    world = World(workload(steady_vm(initial=limits, net_rx_bits_per_s=10_000_000, net_tx_bits_per_s=10_000_000)))
    reading = world.after(12)
    assert number(reading.net_rx_bytes_total) == pytest.approx(6_000_000, rel=1e-3)
    assert reading.net_tx_dropped_total == 0
    truth = world.vm_truth()
    assert number(reading.net_rx_dropped_total) == pytest.approx(truth["unmet"]["net_rx_bits_per_s"] / 12_000, abs=1)
    assert number(reading.net_rx_dropped_total) > 4000
    assert truth["violation_s"]["net_rx_bits_per_s"] == pytest.approx(12)
    assert truth["violation_s"]["net_tx_bits_per_s"] == 0
    assert truth["allocated"]["net_tx_bits_per_s"] == pytest.approx(12 * 10**10)  # unlimited counts as the card's rate


def test_domains_readings_and_allocations_tell_the_same() -> None:
    host = World(workload(steady_vm("a"), steady_vm("b"))).host
    raw = host.read()
    assert (raw.boot_id, raw.failures) == (host.boot_id(), {})
    for domain, vm in zip(host.domains(), raw.vms, strict=True):
        allocation = host.allocation(domain.vm_id)
        assert vm.vm_id == domain.vm_id
        assert (allocation.memory_bytes, allocation.cpu_quota_millicores) == (vm.memory_actual_bytes, vm.cpu_quota_millicores)
        assert number(allocation.vcpus) <= domain.vcpus_max


def test_levers_take_their_time() -> None:
    world = World(workload(steady_vm()))
    host = world.host
    for kind, value in ((StepKind.CPU_QUOTA, 1500), (StepKind.VCPUS, 4), (StepKind.NET_RX, 5_000_000), (StepKind.CPU_SHARES, 2048)):
        host.submit("id-vm", kind, value)
    assert host.allocation("id-vm").cpu_quota_millicores == UNLIMITED
    world.clock.advance(0.006)
    now = host.allocation("id-vm")
    assert (now.cpu_quota_millicores, now.net_rx_bits_per_s, now.cpu_shares, now.vcpus) == (1500, 5_000_000, 2048, 2)
    world.clock.advance(2)
    assert host.allocation("id-vm").vcpus == 4
    host.submit("id-vm", StepKind.CPU_QUOTA, UNLIMITED)
    world.clock.advance(1)
    assert host.allocation("id-vm").cpu_quota_millicores == UNLIMITED


def test_a_balloon_moves_at_its_rate_and_stops_above_the_need() -> None:
    world = World(workload(steady_vm()))
    world.host.submit("id-vm", StepKind.MEMORY, 512 * MIB)
    world.clock.advance(4.005)
    partly = number(world.host.allocation("id-vm").memory_bytes)
    assert partly == pytest.approx(2 * GIB - 4 * 64 * MIB, rel=1e-3)
    world.clock.advance(300)
    assert GIB < number(world.host.allocation("id-vm").memory_bytes) < 1.04 * GIB  # not 512 MiB: the guest keeps what it needs
    assert world.vm_truth()["violation_any_s"] == 0
    world.host.submit("id-vm", StepKind.MEMORY, 8 * GIB)
    world.clock.advance(8)
    assert world.host.allocation("id-vm").memory_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        (StepKind.VCPUS, 5, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        (StepKind.VCPUS_ONLINE, 3, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        (StepKind.MIGRATE, UNLIMITED, RefusalCode.NOT_CAPABLE),
        (StepKind.DIMM, 129 * MIB, RefusalCode.INVALID_VALUE),
        (StepKind.VCPUS, 0, RefusalCode.INVALID_VALUE),
        (StepKind.MEMORY, 9 * GIB, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        (StepKind.MEMORY, UNLIMITED, RefusalCode.INVALID_VALUE),
        (StepKind.CPU_QUOTA, 9, RefusalCode.INVALID_VALUE),
        (StepKind.CPU_SHARES, 1, RefusalCode.INVALID_VALUE),
        (StepKind.NET_TX, 0, RefusalCode.INVALID_VALUE),
    ],
)
def test_impossible_values_are_refused_and_change_nothing(kind: StepKind, value: int, code: RefusalCode) -> None:
    world = World(workload(steady_vm()))
    before = world.host.allocation("id-vm")
    with pytest.raises(Refusal) as caught:
        world.host.submit("id-vm", kind, value)
    assert caught.value.code is code
    world.clock.advance(10)
    assert world.host.allocation("id-vm") == before


def test_an_unknown_vm_is_refused() -> None:
    world = World(workload(steady_vm()))
    for call in (lambda: world.host.allocation("nobody"), lambda: world.host.submit("nobody", StepKind.VCPUS, 2)):
        with pytest.raises(Refusal, match="nobody") as caught:
            call()
        assert caught.value.code is RefusalCode.UNKNOWN_VM


def test_a_stuck_vm_is_named_and_the_others_are_read() -> None:
    world = World(workload(steady_vm("a"), steady_vm("b")), SimulationFaults(stuck_vms=("a",)))
    raw = world.host.read()
    assert list(raw.failures) == ["id-a"]
    assert [vm.vm_id for vm in raw.vms] == ["id-b"]
    with pytest.raises(HostError, match="does not answer"):
        world.host.submit("id-a", StepKind.CPU_QUOTA, 100)
    world.host.faults = SimulationFaults()
    assert len(world.host.read().vms) == 2


def test_a_late_guest_shows_old_statistics() -> None:
    world = World(workload(steady_vm()), SimulationFaults(late_guests=("vm",), late_guest_s=60))
    reading = world.after(58)
    assert world.clock.wall_ns() - number(reading.memory_reading_wall_ns) == 58 * NS_PER_S
    reading = world.after(10)
    assert world.clock.wall_ns() - number(reading.memory_reading_wall_ns) == 8 * NS_PER_S


def test_submits_fail_or_get_lost_in_the_proportion_asked_for() -> None:
    def failures(faults: SimulationFaults) -> list[bool]:
        world = World(workload(steady_vm()), faults)
        failed = []
        for i in range(400):
            try:
                world.host.submit("id-vm", StepKind.CPU_QUOTA, 1000 + i)
            except HostError:
                failed.append(True)
                continue
            world.clock.advance(1)
            failed.append(world.host.allocation("id-vm").cpu_quota_millicores != 1000 + i)
        return failed

    raised = failures(SimulationFaults(submit_failure_permille=200))
    assert 50 < sum(raised) < 110
    assert raised == failures(SimulationFaults(submit_failure_permille=200))
    assert sum(failures(SimulationFaults(submit_lost_permille=200))) == sum(raised)
    assert not any(failures(SimulationFaults()))


def test_counters_rise_and_do_not_depend_on_how_often_they_are_read() -> None:
    tight = Allocation(vcpus=2, cpu_quota_millicores=900, memory_bytes=2 * GIB, net_rx_bits_per_s=100_000)

    def at_the_end(period: float) -> RawVm:
        world = World(workload(steady_vm(noise=400, bursts=100, initial=tight)), at_s=1.7)
        readings = [world.after(period) for _ in range(round(600 / period))]
        for name in RawVm.__struct_fields__:
            if name.endswith("_total"):
                values = [getattr(reading, name) for reading in readings]
                assert all(value is None for value in values) or all(a <= b for a, b in pairwise(values)), name
        return readings[-1]

    often, seldom = at_the_end(0.75), at_the_end(30)
    for name in RawVm.__struct_fields__:
        value = getattr(often, name)
        assert getattr(seldom, name) == (
            pytest.approx(value, abs=1, rel=1e-9) if name.endswith("_total") and value is not None else value
        ), name


def test_a_coarser_step_keeps_the_averages() -> None:
    def used(step_s: int) -> int:
        clock = ManualClock(START_S * NS_PER_S)
        host = SimulatedHost(workload(steady_vm(noise=200)), lambda: (clock.now_ns, clock.now_ns), step_s=step_s)
        clock.advance(4 * 3600)
        return number(host.read().vms[0].cpu_used_ns_total)

    assert used(30) == pytest.approx(used(5), rel=0.05)
    with pytest.raises(ConfigError, match="step_s 7"):
        used(7)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(list(StepKind)), st.integers(0, 1), st.integers(-1, 10 * GIB) | st.integers(-1, 6000), st.floats(0, 90)),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_whatever_is_asked_nothing_impossible_shows(actions: list[tuple[StepKind, int, int, float]]) -> None:
    world = World(workload(steady_vm("a", noise=500, bursts=200), steady_vm("b", cpu_millicores=3500), cpu=3000, memory=3 * GIB))
    before = world.host.read()
    for kind, vm, value, pause in actions:
        with suppress(Refusal):
            world.host.submit(before.vms[vm].vm_id, kind, value)
        world.clock.advance(pause)
        after = world.host.read()
        elapsed = after.monotonic_ns - before.monotonic_ns
        assert number(after.cpu_busy_ns_total) - number(before.cpu_busy_ns_total) <= 3 * elapsed + 10
        for old, new in zip(before.vms, after.vms, strict=True):
            assert 1 <= number(new.vcpus) <= 4
            assert 1 <= number(new.vcpus_online) <= number(new.vcpus)
            assert 0 < number(new.memory_actual_bytes) - number(new.virtio_mem_bytes) - number(new.dimm_bytes) <= 8 * GIB
            assert 0 <= number(new.virtio_mem_bytes) <= 8 * GIB and 0 <= number(new.dimm_bytes) <= 8 * GIB
            assert number(new.memory_rss_bytes) <= number(new.memory_actual_bytes) + 1
            if old.epoch == new.epoch:
                for name in RawVm.__struct_fields__:
                    if name.endswith("_total") and getattr(new, name) is not None:
                        assert getattr(old, name) <= getattr(new, name), name
                stalled = number(new.psi_memory_some_us_total) - number(old.psi_memory_some_us_total)
                assert stalled <= elapsed / 1000 + 1
        before = after
    truth = world.host.truth()["total"]
    assert max(truth["violation_s"].values()) <= truth["violation_any_s"] + 1e-6 <= truth["observed_s"] + 1e-5
    assert all(truth["used"][name] <= truth["allocated"][name] * (1 + 1e-9) for name in truth["used"])


def test_the_same_calls_give_the_same_history() -> None:
    def story() -> bytes:
        world = World(workload(steady_vm(noise=300, bursts=50)), SimulationFaults(submit_failure_permille=300))
        frames = []
        for i in range(40):
            try:
                world.host.submit("id-vm", StepKind.MEMORY, 2 * GIB + i * MIB)
            except HostError as error:
                frames.append(str(error).encode())
            world.clock.advance(5)
            frames.append(msgspec.msgpack.encode(world.host.read()))
        return b"".join(frames)

    assert story() == story()


def test_truth_is_json_and_starts_anew_on_request() -> None:
    world = World(workload(steady_vm(cpu_millicores=3000), steady_vm("calm")))
    world.clock.advance(100)
    truth = json.loads(json.dumps(world.host.truth()))
    assert truth["total"]["violation_any_s"] == pytest.approx(100)
    assert truth["total"]["observed_s"] == pytest.approx(200)
    world.host.reset_truth()
    world.clock.advance(7)
    truth = world.host.truth()
    assert truth["until_ns"] - truth["since_ns"] == 7 * NS_PER_S
    assert truth["total"]["violation_any_s"] == pytest.approx(7)


def test_a_snapshot_keeps_limits_and_counters_over_a_restart() -> None:
    load = workload(steady_vm())
    world = World(load)
    world.host.submit("id-vm", StepKind.CPU_QUOTA, 700)
    before = world.after(60)
    world.host.submit("id-vm", StepKind.VCPUS, 3)
    later = World(load, snapshot=world.host.snapshot(), at_s=120)
    reading = later.after(0)
    assert later.host.boot_id() == world.host.boot_id()
    assert (reading.cpu_quota_millicores, reading.vcpus, reading.epoch) == (700, 3, before.epoch)
    assert number(reading.cpu_used_ns_total) - number(before.cpu_used_ns_total) == 42 * NS_PER_S  # lived on while nobody looked
    assert World(load, at_s=120).host.boot_id() != world.host.boot_id()


@pytest.mark.parametrize(
    "data", [b"", b"\x01", msgspec.msgpack.encode({"host": "h"}), msgspec.msgpack.encode({"host": "other", "vms": {}})]
)
def test_a_foreign_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="snapshot"):
        World(workload(steady_vm()), snapshot=data)


def test_a_vm_moves_to_another_host_with_its_limits_and_its_demand() -> None:
    clock = ManualClock(START_S * NS_PER_S)
    loads = workload(steady_vm("mover", cpu_millicores=1500), steady_vm("stayer")), workload()
    source, target = (SimulatedHost(load, lambda: (clock.wall_ns(), clock.monotonic_ns()), movable=True) for load in loads)
    assert [domain.capabilities.migrate for domain in source.domains()] == [None, None]
    source.submit("id-mover", StepKind.CPU_QUOTA, 700)
    clock.advance(60)
    before = next(vm for vm in source.read().vms if vm.vm_id == "id-mover")
    source.submit("id-mover", StepKind.VCPUS, 3)
    target.admit(source.release("id-mover"))
    assert [domain.vm_id for domain in source.domains()] == [vm.vm_id for vm in source.read().vms] == ["id-stayer"]
    assert [domain.vm_id for domain in target.domains()] == ["id-mover"]
    with pytest.raises(Refusal, match="no VM"):
        source.allocation("id-mover")
    clock.advance(60)
    (after,) = target.read().vms
    assert after.epoch != before.epoch
    assert (after.cpu_quota_millicores, after.vcpus) == (700, 2)  # a step under way is lost with the QEMU process
    assert number(after.cpu_used_ns_total) == 42 * NS_PER_S  # its demand came along, its counters began anew
    assert target.read().cpu_busy_ns_total > 0
    target.submit("id-mover", StepKind.CPU_QUOTA, 900)
    clock.advance(1)
    assert target.allocation("id-mover").cpu_quota_millicores == 900
