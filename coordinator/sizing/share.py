"""Who gets what when a host cannot hold everybody: tranches by priority, filled from the top, in proportion within a class.

Order: what cannot be taken from anybody; floors, high to low; whole targets of the classes from `strict_from` on; means of the other
classes, high to low; their targets, high to low; last what VMs hold beyond their target only because the evidence for a shrink is not
in yet.
Invariant: the sum never passes the capacity unless what cannot be taken does so alone (then everyone gets that and no more).
This is the optimum of the linear program with tranche weights that fall steeply along that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.sizing.levers import round_down

CLASSES_DOWN = (3, 2, 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one VM asks of one resource: base <= floor <= need <= target <= hold are taken in that order."""

    priority: int
    base: float  # the part of the floor that it has already
    floor: float
    need: float  # forecast mean: what it will use for sure
    target: float
    hold: float  # what it would be left with if there were room


def share_capacity(claims: Sequence[Claim], capacity: float, *, strict_from: int, granule: float) -> list[float]:
    """Grants in the order of the claims. Cut grants are rounded down to whole granules."""
    if sum(max(c.floor, c.hold) for c in claims) <= capacity:
        return [max(c.floor, c.hold) for c in claims]
    grants = [c.base for c in claims]
    left = capacity - sum(grants)
    for members, tops in tranches(claims, strict_from):
        if left <= 0.0:
            break
        asks = [max(0.0, top - grants[i]) for i, top in zip(members, tops, strict=True)]
        total = sum(asks)
        if total <= left:
            for i, ask in zip(members, asks, strict=True):
                grants[i] += ask
            left -= total
            continue
        for i, ask in zip(members, asks, strict=True):
            grants[i] = max(grants[i], round_down(grants[i] + ask * left / total, granule))
        left = 0.0  # what rounding leaves must not pass to a lower class
    return grants


def tranches(claims: Sequence[Claim], strict_from: int) -> Iterator[tuple[list[int], list[float]]]:
    """(members, levels to fill them to), in the order of service."""
    members = {p: [i for i, c in enumerate(claims) if c.priority == p] for p in CLASSES_DOWN}
    for p in CLASSES_DOWN:
        yield members[p], [claims[i].floor for i in members[p]]
    for p in CLASSES_DOWN:
        if p >= strict_from:
            yield members[p], [claims[i].target for i in members[p]]
    for p in CLASSES_DOWN:
        if p < strict_from:
            yield members[p], [min(claims[i].need, claims[i].target) for i in members[p]]
    for p in CLASSES_DOWN:
        if p < strict_from:
            yield members[p], [claims[i].target for i in members[p]]
    for p in CLASSES_DOWN:
        yield members[p], [claims[i].hold for i in members[p]]


def spare_grants(grants: Sequence[float], tops: Sequence[float], room: float, granule: float) -> list[float]:
    """`room` handed out on top of the grants, in proportion to them, up to `tops`; whole granules."""
    total = sum(grants)
    if room <= 0.0 or total <= 0.0:
        return list(grants)
    return [max(g, min(top, round_down(g + room * g / total, granule))) for g, top in zip(grants, tops, strict=True)]
