"""Outlooks of several shards, or of several moments, as one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from coordinator.model import Outlook


def join_outlooks(outlooks: Sequence[Outlook]) -> Outlook | None:
    """One of all VMs, as far as they are of the newest issue time; of a VM that is in several the last counts. None = none is given."""
    if not outlooks:
        return None
    newest_s = max(outlook.issued_s for outlook in outlooks)
    current = [outlook for outlook in outlooks if outlook.issued_s == newest_s]
    if len(current) == 1:
        return current[0]
    place = {vm_id: i for i, vm_id in enumerate(v for outlook in current for v in outlook.vm_ids)}
    whole = replace(
        current[0],
        quantiles=np.concatenate([outlook.quantiles for outlook in current]),
        peak_quantiles=np.concatenate([outlook.peak_quantiles for outlook in current]),
        coverage=np.concatenate([outlook.coverage for outlook in current]),
    )
    return whole.select(tuple(place), np.array(list(place.values()), dtype=np.int64))
