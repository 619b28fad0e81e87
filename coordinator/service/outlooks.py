"""The six-hour outlook as the API shows it, and how it comes from the decision cycle's arrays. Pure.

NaN (unknown) becomes None; levels, order and units stay those of coordinator.model.
"""

from __future__ import annotations

import msgspec
import numpy as np

from coordinator.forecast.outlook import BLOCK_S
from coordinator.model import LEVELS, Outlook
from coordinator.service.forecasts import Resource, all_known, known
from shared.units import RESOURCES


class OutlookBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One half hour: its mean, and the largest 5-second demand within it, as quantiles in the order of OutlookView.levels."""

    start_s: int
    quantiles: tuple[float | None, ...]
    peak_quantiles: tuple[float | None, ...]


class ResourceOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """The coming half hours of one resource; empty where too little is known of it."""

    resource: Resource
    coverage: float | None  # realised coverage of the central 80 % band of the mean of late
    blocks: tuple[OutlookBlock, ...]


class OutlookView(msgspec.Struct, frozen=True, kw_only=True):
    """What one VM will need in the next six hours, for plans. Blocks are 1,800 s long and begin at `issued_s`, a half hour of UTC."""

    vm_id: str
    issued_s: int | None  # None = none was made yet; every `blocks` is empty then
    levels: tuple[float, ...]
    resources: tuple[ResourceOutlook, ...]


def outlook_view(outlook: Outlook | None, vm_id: str) -> OutlookView:
    """All blocks of one VM; without any where there is no outlook of it. O(VMs) for the search."""
    at = outlook.vm_ids.index(vm_id) if outlook is not None and vm_id in outlook.vm_ids else None
    if outlook is None or at is None:
        empty = tuple(ResourceOutlook(resource=name, coverage=None, blocks=()) for name in RESOURCES)
        return OutlookView(vm_id=vm_id, issued_s=None, levels=LEVELS, resources=empty)
    resources = tuple(_ahead(outlook, at, r) for r in range(len(RESOURCES)))
    return OutlookView(vm_id=vm_id, issued_s=outlook.issued_s, levels=outlook.levels, resources=resources)


def _ahead(outlook: Outlook, at: int, r: int) -> ResourceOutlook:
    spoken = [k for k in range(outlook.quantiles.shape[2]) if np.isfinite(outlook.quantiles[at, r, k, 0])]
    blocks = tuple(
        OutlookBlock(
            start_s=outlook.issued_s + BLOCK_S * k,
            quantiles=all_known(outlook.quantiles[at, r, k]),
            peak_quantiles=all_known(outlook.peak_quantiles[at, r, k]),
        )
        for k in spoken
    )
    return ResourceOutlook(resource=RESOURCES[r], coverage=known(outlook.coverage[at, r]), blocks=blocks)
