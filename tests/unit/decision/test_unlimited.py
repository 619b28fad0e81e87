"""VMs without a limit of their network: when they need one, and what the receipt then says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.model import N_RESOURCES, VmSize
from coordinator.planning.diff import changes_of, facts_of
from coordinator.sizing.draft import Evidence
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.plan import StepKind
from shared.units import MBIT, NET_RX, NET_TX, UNLIMITED

POLICY = replace(SizingPolicy(), shrink_evidence=(2,) * 5)
CYCLES = 4


def sized(make: Any, vms: list[Any], mbits: list[float], censored: float = 0.0, forecast: int | None = None) -> list[VmSize]:
    """After some cycles; `forecast`: so many of the VMs have one."""
    count = len(vms) if forecast is None else forecast
    mean = np.stack([make.need() for _ in vms])[:count]
    mean[:, NET_RX] = mean[:, NET_TX] = np.array(mbits[:count])[:, None] * MBIT
    block = make.forecast(tuple(vm.domain.vm_id for vm in vms[:count]), mean)
    evidence: Evidence = {}
    sizes: tuple[VmSize, ...] = ()
    for _ in range(CYCLES):
        sizes, evidence = size_host(make.host(*vms), block, POLICY, evidence)
    return list(sizes)


def network_steps(vms: list[Any], sizes: list[VmSize]) -> dict[str, list[tuple[StepKind, int, str]]]:
    found = {}
    for vm, size in zip(vms, sizes, strict=True):
        changes = changes_of(facts_of(vm, size, POLICY, (0,) * N_RESOURCES))
        found[vm.domain.vm_id] = [(c.kind, c.value, c.reason) for c in changes if c.kind in (StepKind.NET_RX, StepKind.NET_TX)]
    return found


def free(make: Any, *names: str, **over: Any) -> list[Any]:
    return [make.vm(name, rx=UNLIMITED, tx=UNLIMITED, **over) for name in names]


def trail(size: VmSize) -> list[str]:
    return [line for line in size.trail if "limit is needed" in line]


@pytest.mark.parametrize("names", ["ab", "abcdef"])
def test_vms_without_a_limit_stay_without_one_while_what_they_want_fits_the_link(make: Any, names: str) -> None:
    vms = free(make, *names)
    sizes = sized(make, vms, [100.0] * len(vms))
    assert network_steps(vms, sizes) == {name: [] for name in names}
    (rx, tx) = trail(sizes[0])
    assert rx.startswith("net_rx no limit is needed: the host's VMs want ") and rx.endswith(" of its 10000 Mbit/s together")
    assert tx.startswith("net_tx no limit is needed")
    assert sizes[0].target[NET_RX] < 1000 * MBIT, "the size is shown all the same"
    assert sizes[0].clipped == ()


def test_when_more_is_wanted_than_the_link_has_everybody_is_limited_and_told_why(make: Any) -> None:
    vms = free(make, "a", "b")
    sizes = sized(make, vms, [7000.0, 7000.0])
    for steps, size in zip(network_steps(vms, sizes).values(), sizes, strict=True):
        assert {kind for kind, _, _ in steps} == {StepKind.NET_RX, StepKind.NET_TX}
        assert all(value < 10_000 * MBIT and reason == "host_contention" for _, value, reason in steps)
        assert trail(size)[0].startswith("net_rx a limit is needed: the host's VMs want 1")


def test_one_that_has_to_grow_beyond_its_limit_needs_the_others_to_have_one(make: Any) -> None:
    calm = [*free(make, "a"), make.vm("b")]
    sizes = sized(make, calm, [50.0, 20.0])
    assert network_steps(calm, sizes)["a"] == []
    sizes = sized(make, calm, [50.0, 300.0])
    assert network_steps(calm, sizes)["a"], "the host would refuse the growth"
    assert trail(sizes[0])[0] == "net_rx a limit is needed: b has one that has to grow, and a VM without any counts as the whole link"
    hidden = [*free(make, "a"), make.vm("b", censored=0.5)]
    assert "has to grow" in trail(sized(make, hidden, [50.0, 20.0])[0])[0]


def test_a_vm_of_which_nothing_is_known_counts_as_the_whole_link(make: Any) -> None:
    seen = np.full(N_RESOURCES, 30.0 * MBIT)
    for rest, limited in ((free(make, "b"), True), (free(make, "b", peak_now=seen), False)):
        vms = [*free(make, "a"), *rest]
        assert bool(network_steps(vms, sized(make, vms, [50.0], forecast=1))["a"]) is limited


def test_an_owners_ceiling_is_a_limit(make: Any) -> None:
    vms = free(make, "a", "b", policy={"net_ceiling_bits_per_s": 200 * MBIT})
    steps = network_steps(vms, sized(make, vms, [50.0, 50.0]))
    assert all({kind for kind, _, _ in each} == {StepKind.NET_RX, StepKind.NET_TX} for each in steps.values())
