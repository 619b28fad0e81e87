"""VMs whose network nobody limits: they stay as they are for as long as the link has room for what is wanted of it. Pure.

A host counts a VM without a limit as if it had been promised the whole link, so that two of them pass what the host may promise although
neither uses a hundredth of it. A promise of that kind binds nobody. So a direction of a host's network is left alone when what all its VMs
want, each by the quantile of its priority, fits the link, and no VM with a limit has to grow: the host would refuse that growth while
others may take all. Otherwise every VM is sized, and the receipt says which of the two it was.
A VM without a forecast counts with the peak of the newest bucket (nothing limited it), unknown with the whole link.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from coordinator.model import F64, HostState, VmState
from coordinator.sizing.draft import Draft
from coordinator.sizing.levers import promised
from coordinator.sizing.policy import SizingPolicy
from shared.units import MBIT, NET_RX, NET_TX, UNLIMITED

NETWORK: Final = frozenset({NET_RX, NET_TX})


class Ahead(NamedTuple):
    """Quantiles [v, q] of the drafts' peaks, in their order, and their levels [q]; NaN = no forecast."""

    peaks: F64
    levels: tuple[float, ...]


def needs_no_limit(host: HostState, drafts: Sequence[Draft], ahead: Ahead, link: float, policy: SizingPolicy) -> bool:
    """Whether one direction of the network needs nobody's limit; `drafts`: all sized ones of the host, `link`: what it may promise, bits/s.

    True: drafts of VMs without a limit end where they are. Either way their trails say why.
    """
    r = drafts[0].resource
    free = [draft for draft in drafts if r in NETWORK and unlimited(draft.vm, r) and draft.allocation <= draft.ceiling]
    if not free:
        return False
    own = {draft.vm.domain.vm_id for draft in free}
    bound = [draft for draft in drafts if draft.vm.domain.vm_id not in own]
    peaks = dict(zip((draft.vm.domain.vm_id for draft in drafts), ahead.peaks, strict=True))
    rest = [vm for vm in host.vms if vm.domain.running and vm.domain.vm_id not in peaks]
    wants = [_wanted(draft, peaks[draft.vm.domain.vm_id], ahead.levels, policy) for draft in free]
    wanted = sum(wants) + sum(draft.settled for draft in bound) + sum(_taken(vm, r) for vm in rest)
    told = f"the host's VMs want {_mbit(wanted)} of its {_mbit(link)} together"
    grows = next((draft.vm.domain.name for draft in bound if draft.settled > draft.allocation or _hidden(draft, policy)), None)
    if wanted > link:
        why = f"a limit is needed: {told}"
    elif grows is not None:
        why = f"a limit is needed: {grows} has one that has to grow, and a VM without any counts as the whole link"
    else:
        why = f"no limit is needed: {told}"
    for draft in free:
        draft.note(why)
    if wanted > link or grows is not None:
        return False
    for draft, want in zip(free, wants, strict=True):
        draft.target = min(want, draft.allocation)
        draft.lower, draft.upper = min(draft.lower, draft.allocation), max(draft.upper, draft.allocation)
    return True


def unlimited(vm: VmState, r: int) -> bool:
    """No limit of the network is in force in this direction."""
    return (vm.allocation.net_rx_bits_per_s if r == NET_RX else vm.allocation.net_tx_bits_per_s) == UNLIMITED


def _wanted(draft: Draft, peaks: F64, levels: tuple[float, ...], policy: SizingPolicy) -> float:
    """The quantile of its priority, which unlike a size that was bought does not end where the link does; no less than the newest size,
    before evidence and the largest cut of a cycle.
    """
    size = draft.window[-1] if draft.window else draft.target
    return float(np.fmax(size, np.interp(policy.size_quantile[int(draft.vm.domain.policy.priority)], levels, peaks)))


def _hidden(draft: Draft, policy: SizingPolicy) -> bool:
    return bool(draft.vm.censored_now[draft.resource] >= policy.climb_from)  # NaN compares false


def _taken(vm: VmState, r: int) -> float:
    peak = float(vm.peak_now[r])
    return peak if unlimited(vm, r) and math.isfinite(peak) else promised(vm, r)


def _mbit(bits_per_s: float) -> str:
    return f"{bits_per_s / MBIT:.0f} Mbit/s"
