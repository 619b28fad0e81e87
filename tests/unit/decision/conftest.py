"""Builders of hosts, VMs and forecasts for the tests of sizing, placement, planning and learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.model import LEVELS, N_RESOURCES, ForecastBlock, HostState, VmState
from shared.model import Allocation, Capabilities, Domain, HostCapacity, Mode, Policy, Priority
from shared.units import CPU, GIB, MBIT, MEMORY

ISSUED_S = 1_700_000_100 // 300 * 300
# Standard normal quantiles at LEVELS, so that a block's quantiles are mean + z * stddev.
Z = np.array([-1.96, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449, 1.96, 2.3263])


class Make:
    """Defaults for everything; keyword arguments override."""

    issued_s = ISSUED_S

    def vm(self, vm_id: str = "a", **over: Any) -> VmState:
        allocation = Allocation(
            vcpus=over.pop("vcpus", 4),
            cpu_quota_millicores=over.pop("quota", 1000),
            cpu_shares=over.pop("shares", 1024),
            memory_bytes=over.pop("memory", 2 * GIB),
            net_rx_bits_per_s=over.pop("rx", 100 * MBIT),
            net_tx_bits_per_s=over.pop("tx", 100 * MBIT),
        )
        policy = msgspec.structs.replace(Policy(), priority=Priority(over.pop("priority", 1)), **over.pop("policy", {}))
        domain = Domain(
            vm_id=vm_id,
            name=vm_id,
            vcpus_max=over.pop("vcpus_max", 8),
            memory_max_bytes=over.pop("memory_max", 8 * GIB),
            running=over.pop("running", True),
            policy=policy,
            capabilities=msgspec.structs.replace(Capabilities(migrate=None), **over.pop("cannot", {})),
        )
        state: dict[str, Any] = {
            "demand_now": np.full(N_RESOURCES, np.nan),
            "peak_now": np.full(N_RESOURCES, np.nan),
            "censored_now": np.full(N_RESOURCES, over.pop("censored", 0.0)),
            "working_set_bytes": 0.5 * GIB,
        }
        return VmState(domain=domain, host_id=over.pop("host_id", "h"), allocation=allocation, **(state | over))

    def host(self, *vms: VmState, **over: Any) -> HostState:
        capacity = {
            "cpu_millicores": 16_000,
            "memory_bytes": 64 * GIB,
            "net_bits_per_s": 10_000 * MBIT,
            "cpu_commit_millicores": 16_000,
            "memory_commit_bytes": 60 * GIB,
            "net_commit_bits_per_s": 10_000 * MBIT,
            "numa_memory_bytes": (),
            "numa_cpus": (),
        }
        capacity |= {k: over.pop(k) for k in list(over) if k in capacity}
        given: dict[str, Any] = {"host_id": "h", "mode": Mode.PREDICTIVE, "alive": True}
        return HostState(capacity=HostCapacity(**capacity), vms=vms, **(given | over))

    def forecast(self, vm_ids: tuple[str, ...], mean: Any, stddev: Any = 0.0, *, peak: Any = None, reason: Any = 0) -> ForecastBlock:
        """mean, stddev, peak: broadcast to [v, r, 12]; peak (of a step) defaults to the mean; its quantiles share the stddev."""
        shape = (len(vm_ids), N_RESOURCES, 12)
        means, spread = np.broadcast_to(mean, shape).astype(float), np.broadcast_to(stddev, shape).astype(float)
        tops = means if peak is None else np.broadcast_to(peak, shape).astype(float)
        quantiles = np.maximum(0.0, means[..., None] + Z * spread[..., None])
        peaks = np.maximum.accumulate(np.maximum(0.0, tops[..., None] + Z * spread[..., None]), axis=2)
        return ForecastBlock(
            issued_s=self.issued_s,
            vm_ids=vm_ids,
            mean=means.astype(np.float32),
            stddev=spread.astype(np.float32),
            quantiles=quantiles.astype(np.float32),
            peak_quantiles=peaks.astype(np.float32),
            model=np.zeros(shape[:2], np.int8),
            models=("ses", "naive"),
            reason=np.broadcast_to(reason, shape[:2]).astype(np.int8),
            coverage=np.full(shape[:2], 0.8, np.float32),
            levels=LEVELS,
        )

    def of_cpu(self, curves: Mapping[str, Any], stddev: Any = 0.0) -> ForecastBlock:
        """CPU [12] of each VM beside half a GiB of memory; `stddev` as in `forecast`."""
        mean = np.zeros((len(curves), N_RESOURCES, 12))
        for i, curve in enumerate(curves.values()):
            mean[i, CPU], mean[i, MEMORY] = curve, 0.5 * GIB
        return self.forecast(tuple(curves), mean, stddev)

    def need(self, cpu: float = 500.0, memory: float = 1.0 * GIB, net: float = 20.0 * MBIT) -> np.ndarray:
        """One VM's demand [r, 1], the same in every step."""
        return np.array([cpu, memory, 0.0, net, net])[:, None]


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()
