"""Policies that the coordinator puts over those that domains state themselves. Pure.

The host stays the trust boundary: an order may narrow what a domain's metadata allow, never widen it, and cannot take back an exclusion. It
is not kept over a restart: without a coordinator's word the metadata hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from shared.model import Domain, Mode, Policy

BANDS: Final = tuple(
    (f"{what}_floor_{unit}", f"{what}_ceiling_{unit}")
    for what, unit in (("cpu", "millicores"), ("memory", "bytes"), ("net", "bits_per_s"), ("disk", "bytes_per_s"))
)


def with_orders(domains: Sequence[Domain], ordered: Mapping[str, Policy]) -> tuple[Domain, ...]:
    """The domains with the policies that hold for them."""
    return tuple(
        domain if (order := ordered.get(domain.vm_id)) is None else msgspec.structs.replace(domain, policy=narrowed(domain.policy, order))
        for domain in domains
    )


def narrowed(own: Policy, order: Policy) -> Policy:
    """The order, no wider than the domain's own policy."""
    bounds = {}
    for floor, ceiling in BANDS:
        bounds[floor] = _both(getattr(own, floor), getattr(order, floor), max)
        bounds[ceiling] = _both(getattr(own, ceiling), getattr(order, ceiling), min)
    excluded = own.excluded or order.excluded or order.mode in (Mode.OFF, Mode.OBSERVE)
    return msgspec.structs.replace(order, excluded=excluded, **bounds)


def _both(own: int | None, order: int | None, stricter: Callable[[int, int], int]) -> int | None:
    return order if own is None else own if order is None else stricter(own, order)
