"""The history store of the simulated world: blocks joined, extended and merged by the rules of coordinator/store/history.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from coordinator.model import BucketBlock, HistoryBlock
from shared.units import BUCKET_S


def joined(blocks: Sequence[HistoryBlock]) -> HistoryBlock:
    """Histories of several hosts as one block."""
    names = ("mean", "peak", "censored", "capacity")
    mean, peak, censored, capacity = (np.concatenate([getattr(b, name) for b in blocks]) for name in names)
    vm_ids = tuple(vm_id for b in blocks for vm_id in b.vm_ids)
    return replace(blocks[0], vm_ids=vm_ids, mean=mean, peak=peak, censored=censored, capacity=capacity)


def extended(base: HistoryBlock, buckets: Sequence[BucketBlock | None]) -> HistoryBlock:
    """`base` and the buckets that follow it; None and VMs that a bucket lacks = unknown."""
    row_of = {vm_id: row for row, vm_id in enumerate(base.vm_ids)}
    added = np.full((3, *base.mean.shape[:2], len(buckets)), np.nan, dtype=np.float32)
    for b, bucket in enumerate(buckets):
        if bucket is None:
            continue
        pairs = [(row_of[vm_id], i) for i, vm_id in enumerate(bucket.vm_ids) if vm_id in row_of]
        rows, sources = [row for row, _ in pairs], [i for _, i in pairs]
        for plane, values in enumerate((bucket.mean, bucket.peak, bucket.censored)):
            added[plane, rows, :, b] = values[sources]
    known = (base.mean, base.peak, base.censored)
    mean, peak, censored = (np.concatenate([old, new], axis=2) for old, new in zip(known, added, strict=True))
    return replace(base, end_s=base.end_s + BUCKET_S * len(buckets), mean=mean, peak=peak, censored=censored)


def merged(known: BucketBlock, newer: BucketBlock) -> BucketBlock:
    """VM by VM the version with more samples, the newer one where they are equal."""
    rows: dict[str, tuple[BucketBlock, int]] = {vm_id: (known, i) for i, vm_id in enumerate(known.vm_ids)}
    for i, vm_id in enumerate(newer.vm_ids):
        if vm_id not in rows or newer.samples[i] >= rows[vm_id][0].samples[rows[vm_id][1]]:
            rows[vm_id] = (newer, i)
    order = sorted(rows)
    picked = [rows[vm_id] for vm_id in order]
    mean, peak, usage, censored, allocation, samples = (
        np.array([getattr(b, name)[i] for b, i in picked]) for name in ("mean", "peak", "usage", "censored", "allocation", "samples")
    )
    return BucketBlock(
        start_s=newer.start_s,
        vm_ids=tuple(order),
        host_ids=tuple(b.host_ids[i] for b, i in picked),
        mean=mean,
        peak=peak,
        usage=usage,
        censored=censored,
        allocation=allocation,
        samples=samples,
    )
