"""The terms on which the VMs of a host are sized, and what a VM's shortage weighs on them.

A shortage weighs by the VM's priority, and by how tight its client's SLA error budget is and how fast it is used up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.model import N_RESOURCES, VmState
from coordinator.sizing.policy import SizingPolicy
from shared.plan import StepKind

MINUTES_PER_HOUR: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The policy, and what is known beyond the host and its forecast."""

    policy: SizingPolicy
    measured_lead_s: Mapping[StepKind, float] | None = None
    burn_rate: Mapping[str, float] = field(default_factory=dict)  # vm_id -> speed at which its error budget is used; 1 = just enough
    tightness: Mapping[str, float] = field(default_factory=dict)  # client -> how much more its shortages count, by its budget; absent = 1
    margin: Sequence[float] = (math.inf,) * N_RESOURCES  # [r] deviations of the host's sum, where they were learned
    kept_free: Sequence[float] = (0.0,) * N_RESOURCES  # [r] share of the host's limit that growth leaves free for a host that fails


def urgency(vm: VmState, terms: Terms) -> float:
    """How tight the client's budget is, times up to `burn_full` while it is used up too fast; unknown changes nothing."""
    burn = terms.burn_rate.get(vm.domain.vm_id, math.nan)
    return terms.tightness.get(vm.domain.policy.client, 1.0) * (min(burn, terms.policy.burn_full) if burn > 1.0 else 1.0)


def weight_of(vm: VmState, terms: Terms) -> float:
    """How much this VM's shortage counts against the price of capacity."""
    return terms.policy.priority_weight[int(vm.domain.policy.priority)] * urgency(vm, terms)


def money_weight(vm: VmState, terms: Terms, wanted: float) -> float:
    """Money a minute that one unit missing costs: a VM that lacks all it wants costs `penalty`, one that lacks a tenth a tenth of it."""
    return terms.policy.penalty[int(vm.domain.policy.priority)] * urgency(vm, terms) / max(wanted, 1.0)
