"""Sizes of all VMs of a host bought at the price of capacity, resource by resource, and what a VM's shortage weighs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.model import F64, HostState, VmState
from coordinator.sizing.ahead import Outlook
from coordinator.sizing.levers import GRAIN, SIZED, ceilings, commit_limits, floors, held_by_others, in_force
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.price import buy, curves_of, exceed_at
from coordinator.sizing.shortage import Cell, relieve
from coordinator.sizing.stack import left_alone
from coordinator.sizing.turns import spent
from coordinator.sizing.weigh import MINUTES_PER_HOUR, Terms, money_weight, weight_of

# The reserve is kept in full, by half or not at all: who has a forecast is sized at its median before what might come is provided for.
RESERVE_GIVEN: Final = (1.0, 0.5, 0.0)


def at_price(host: HostState, vms: list[VmState], outlook: Outlook, terms: Terms) -> Outlook:
    """The outlook with its sizes bought at the price of capacity, for every resource that has one: all VMs of the host at once.

    Where they pass what the host may promise, less a reserve, they are cut at the least expected SLA penalty.
    """
    policy = terms.policy
    size, lower, quantile = outlook.size.copy(), outlook.lower.copy(), outlook.quantile.copy()
    price, short, worth = list(outlook.price), list(outlook.short), list(outlook.worth)
    low, high = np.array([floor_to_buy(vm, policy) for vm in vms]), np.array([ceilings(vm) for vm in vms])
    weight = np.array([weight_of(vm, terms) for vm in vms])
    for r in SIZED:
        limit = commit_limits(host)[r]
        # a curve with a hole keeps its fixed quantile, and so does a VM that was promised one
        whole = [
            bool(np.isfinite(curve).all()) and vm.domain.policy.size_quantile_permille is None
            for vm, curve in zip(vms, outlook.peaks[:, r], strict=True)
        ]
        priced = policy.price[r] > 0.0 and limit > 0.0
        rows = [i for i, vm in enumerate(vms) if priced and whole[i] and left_alone(vm, outlook, i, r) is None]
        if not rows:
            continue
        mine = {vms[i].domain.vm_id for i in rows}
        others = held_by_others(host, mine, r)
        held = sum(in_force(vms[i])[r] for i in rows)
        peaks = outlook.peaks[rows, r]
        curves = curves_of(peaks, outlook.levels)
        floor = low[rows, r]
        bought = buy(curves, weight=weight[rows], floor=floor, top=high[rows, r], price=policy.price[r], capacity=limit)
        price[r], worth[r] = policy.price[r], 0.0
        money = np.array([money_weight(vms[i], terms, float(top)) for i, top in zip(rows, peaks[:, -1], strict=True)])
        wanted = Cell(least=floor, floor=floor, most=bought, size=peaks, exceed=chances(peaks, outlook.levels), weight=money, room=math.inf)
        median = np.minimum(bought, curves.size[:, 0])
        for share in RESERVE_GIVEN:
            room = limit - share * reserve_of(limit, r, terms) - others
            if terms.kept_free[r] > policy.reserve_share:  # growth stays below that; what is held already is not taken away for it
                room = max(limit * (1.0 - terms.kept_free[r]) - others, min(room, held))
            if wanted.most.sum() <= room:
                bought = wanted.most
                break
            (relief,) = relieve((replace(wanted, room=room),))
            bought, worth[r] = relief.grant, relief.price * GRAIN[r] * MINUTES_PER_HOUR
            short[r] = True
            if np.all(bought >= median * (1.0 - 1e-9)):
                break
        size[rows, r] = lower[rows, r] = bought
        quantile[rows, r] = 1.0 - exceed_at(curves, bought)
    return replace(outlook, size=size, lower=lower, quantile=quantile, price=tuple(price), short=tuple(short), worth=tuple(worth))


def chances(peaks: F64, levels: tuple[float, ...]) -> F64:
    """The chance of a higher peak at every quantile, [v, q]."""
    return np.broadcast_to(1.0 - np.asarray(levels), peaks.shape)


def floor_to_buy(vm: VmState, policy: SizingPolicy) -> tuple[float, ...]:
    """The least each resource may get, [r]; a lever without a turn keeps what it holds, so that the others share the room that is there."""
    levels = zip(floors(vm, policy), ceilings(vm), in_force(vm), strict=True)
    return tuple(min(max(low, now), top) if spent(vm, r, policy) and now > low else low for r, (low, top, now) in enumerate(levels))


def reserve_of(limit: float, r: int, terms: Terms) -> float:
    """What priced sizes leave free for growth under pressure: the policy's share, or less where the host's sum is known to move less."""
    return min(limit * terms.policy.reserve_share, terms.margin[r])
