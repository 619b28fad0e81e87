"""What every VM of one host should get: a stack of small steps, each adding a line to the trail.

forecast (ahead.py) → sizes at the price of capacity (buying.py) → the stack of each VM (stack.py) → host capacity (capacity.py).
lower, target and upper travel together and are the hysteresis: up fast (any allocation under `lower` is acted on at once), down slow (only
after `shrink_evidence` cycles in a row whose targets all lay below, and then to the largest of them).
Invariants: no shrink of a censored, pressured, just-grown or (memory) unread VM; floors hold; sums stay within the host's commit limits
unless floors and things we may not touch already pass them. Pure; the evidence comes in and goes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from coordinator.model import N_RESOURCES, ForecastBlock, HostState, VmSize, VmState
from coordinator.sizing.ahead import look_ahead
from coordinator.sizing.buying import at_price
from coordinator.sizing.capacity import fit_host
from coordinator.sizing.draft import Draft, Evidence, VmEvidence
from coordinator.sizing.levers import SIZED
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.stack import draft_vm
from coordinator.sizing.weigh import Terms
from shared.plan import StepKind
from shared.units import RESOURCES

NOTHING_KEPT = (0.0,) * N_RESOURCES
MARGIN_UNKNOWN = (math.inf,) * N_RESOURCES


def size_host(
    host: HostState,
    forecast: ForecastBlock,
    policy: SizingPolicy,
    evidence: Mapping[str, VmEvidence],
    *,
    measured_lead_s: Mapping[StepKind, float] | None = None,
    burn_rate: Mapping[str, float] | None = None,
    tightness: Mapping[str, float] | None = None,
    kept_free: Sequence[float] = NOTHING_KEPT,
    margin: Sequence[float] = MARGIN_UNKNOWN,
) -> tuple[tuple[VmSize, ...], Evidence]:
    """Sizes of all VMs of a live host (none of a silent one, none of excluded or stopped VMs) and the evidence to pass in next cycle.

    `burn_rate`: vm_id -> speed at which its error budget is used (1 = just enough for the period).
    `tightness`: client -> how much more its shortages count, by the size of its budget. `kept_free` [r]: share of the host's
    limit that growth leaves free for the VMs of a host that fails. `margin` [r]: what the host's sum may be off by, where that is known.
    """
    if not host.alive:
        return (), {vm.domain.vm_id: evidence[vm.domain.vm_id] for vm in host.vms if vm.domain.vm_id in evidence}
    vms = [vm for vm in host.vms if vm.domain.running and not vm.domain.policy.excluded]
    terms = Terms(
        policy=policy,
        measured_lead_s=measured_lead_s,
        burn_rate=burn_rate or {},
        tightness=tightness or {},
        margin=margin,
        kept_free=kept_free,
    )
    outlook = at_price(host, vms, look_ahead(vms, forecast, terms), terms)
    drafts = [draft_vm(vm, i, outlook, policy, evidence.get(vm.domain.vm_id, VmEvidence())) for i, vm in enumerate(vms)]
    for r in SIZED:
        fit_host(host, [per_vm[r] for per_vm in drafts], r, outlook, terms)
    sizes = tuple(finished(vm, host.host_id, per_vm) for vm, per_vm in zip(vms, drafts, strict=True))
    kept = {vm.domain.vm_id: VmEvidence(windows=tuple(d.window for d in per_vm)) for vm, per_vm in zip(vms, drafts, strict=True)}
    return sizes, kept


def finished(vm: VmState, host_id: str, drafts: Iterable[Draft]) -> VmSize:
    """Freeze one VM's drafts."""
    listed = list(drafts)
    return VmSize(
        vm_id=vm.domain.vm_id,
        host_id=host_id,
        target=np.array([d.target for d in listed]),
        lower=np.array([d.lower for d in listed]),
        upper=np.array([d.upper for d in listed]),
        trail=tuple(line for d in listed for line in d.trail),
        clipped=tuple(RESOURCES[d.resource] for d in listed if d.clipped),
        shadow_price={RESOURCES[d.resource]: d.price for d in listed if d.clipped},
    )
