"""The bench's capping hosts: the quick twin of the product's simulated guest shows what that guest shows, and limits hold."""

from __future__ import annotations

import numpy as np
import pytest

from agent.adapters.simulated_vm import SimulatedVm, SimulationFaults
from agent.adapters.workload import Demand
from agent.ports import RawHost
from agent.sampling.derive import derive
from bench.capping import bucket, cap, detail, limits_of
from coordinator.demand.censoring import columns_of
from coordinator.model import F64, N_RESOURCES
from shared.model import Allocation, VmSample
from shared.units import CPU, DISK, GIB, MEMORY, MIB, NET_RX, NET_TX, NS_PER_S
from shared.workload import VmWorkload

LIMIT = np.array([[1200.0, 2.0 * GIB, 40.0 * MIB, 5e6, 3e6]])


def levels(buckets: int = 4) -> F64:
    """Every resource rises from well below its limit to well above it."""
    return LIMIT[:, :, None] * np.linspace(0.6, 1.3, buckets)


def guest_samples(slots: F64, vcpus: int) -> list[VmSample]:
    """The product's simulated guest and the agent's own derivation, slot by slot."""
    most = int(2 * slots[MEMORY].max())
    limits = LIMIT[0].astype(int)
    initial = Allocation(
        vcpus=vcpus,
        cpu_quota_millicores=int(limits[CPU]),
        memory_bytes=int(limits[MEMORY]),
        disk_bytes_per_s=int(limits[DISK]),
        net_rx_bits_per_s=int(limits[NET_RX]),
        net_tx_bits_per_s=int(limits[NET_TX]),
    )
    spec = VmWorkload(
        vm_id="a",
        name="a",
        source="",
        vcpus_max=vcpus,
        memory_max_bytes=most,
        initial=initial,
        seed=1,
        cpu_millicores=b"",
        memory_bytes=b"",
        disk_read_bytes_per_s=b"",
        disk_write_bytes_per_s=b"",
        net_rx_bits_per_s=b"",
        net_tx_bits_per_s=b"",
    )
    demands = [Demand(c, m, 0.0, d, rx, tx) for c, m, d, rx, tx in slots.T]
    vm = SimulatedVm(spec, 0, 0, demands[0])
    vm.disk_bytes = int(limits[DISK])
    previous, out = RawHost(wall_ns=0, monotonic_ns=0, boot_id="b", vms=(vm.reading("b"),)), []
    for k, demand in enumerate(demands, start=1):
        now = 5 * k * NS_PER_S
        vm.advance(5.0, now, demand, vm.want(demand.cpu_millicores), host_short=0.0, faults=SimulationFaults())
        current = RawHost(wall_ns=now, monotonic_ns=now, boot_id="b", vms=(vm.reading("b"),))
        out.append(derive(previous, current, {}).vms["a"])
        previous = current
    return out


def test_the_simulated_host_shows_what_the_products_simulated_guest_shows() -> None:
    demand = detail(levels(), 7)
    capped = cap(demand, LIMIT, "simulated")
    vcpus = int(capped.columns["vcpus"][0, 0])
    theirs = columns_of(guest_samples(demand[0], vcpus))
    for name in (
        "cpu_throttled_permille",
        "cpu_ready_permille",
        "psi_cpu_some_permille",
        "memory_swap_bytes_per_s",
        "memory_major_faults_per_s",
        "psi_memory_some_permille",
        "disk_write_bytes_per_s",
        "net_rx_bits_per_s",
        "net_rx_dropped_per_s",
        "net_tx_bits_per_s",
        "net_tx_dropped_per_s",
    ):
        ours = capped.columns[name][0]
        np.testing.assert_allclose(ours, theirs[name], rtol=2e-3, atol=1.5, err_msg=name)
        assert ours.max() > 0 or name == "cpu_ready_permille", name
    starving = theirs["psi_memory_some_permille"] > 0  # there a guest also works more slowly, which the twin leaves out
    np.testing.assert_allclose(
        capped.columns["cpu_used_millicores"][0][~starving], theirs["cpu_used_millicores"][~starving], rtol=2e-3, atol=1
    )


@pytest.mark.parametrize("host", ["simulated", "kernel"])
def test_no_host_serves_more_than_it_allows_or_is_asked(host: str) -> None:
    demand = detail(levels(12), 9)
    columns = cap(demand, LIMIT, host).columns
    assert (columns["cpu_used_millicores"] <= LIMIT[0, CPU] + 1).all()
    assert (columns["net_rx_bits_per_s"] <= np.minimum(LIMIT[0, NET_RX], demand[:, NET_RX]) + 1).all()
    assert columns["cpu_throttled_permille"].max() > 0
    free = cap(demand, np.full_like(LIMIT, np.inf), host).columns
    assert free["cpu_throttled_permille"].max() == 0
    np.testing.assert_allclose(free["cpu_used_millicores"], demand[:, CPU], atol=0.51)
    assert free["memory_swap_bytes_per_s"].max() == 0


def test_detail_keeps_the_means_and_gaps_of_the_trace() -> None:
    mean = levels(6)
    mean[0, DISK, 2] = np.nan
    fine = detail(mean, 2)
    np.testing.assert_allclose(fine.reshape(1, N_RESOURCES, 6, 60).mean(axis=3), mean, rtol=2e-3)
    rows, columns = bucket(cap(fine, LIMIT, "simulated").columns, 2)
    assert len(rows) == 60
    assert np.isnan(columns["disk_write_bytes_per_s"]).all()


def test_limits_lie_within_what_the_vm_asks_for() -> None:
    flat = np.full((1, N_RESOURCES, 48), 100.0)
    assert np.isinf(limits_of(flat, 0.7)).all()
    ramp = np.broadcast_to(np.arange(1.0, 49.0), (1, N_RESOURCES, 48))
    assert limits_of(ramp, 0.5)[0, CPU] == pytest.approx(24.5)
    assert limits_of(ramp, 0.5)[0, MEMORY] == pytest.approx(0.714 * 48)


def test_unknown_hosts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"host 'moon': allowed simulated, kernel"):
        cap(detail(levels(), 1), LIMIT, "moon")
