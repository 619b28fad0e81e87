"""Which VM's forecasts live in which shard, and how shard results are joined. Pure.

A VM's shard follows from its id alone (CRC-32), so it is the same after a restart and on every worker.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.forecast.challengers import ChallengerForecast
from coordinator.forecast.outlook import join_outlooks
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock


def shard_of(vm_id: str, shards: int) -> int:
    """Shard index of a VM."""
    return zlib.crc32(vm_id.encode()) % shards


def _members(vm_ids: Sequence[str], shards: int) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(shards)]
    for i, vm_id in enumerate(vm_ids):
        members[shard_of(vm_id, shards)].append(i)
    return members


def least_shards(vm_ids: Sequence[str], least: int, most_vms: int, limit: int) -> int | None:
    """The smallest number of shards from `least` to `limit` of which none gets more than `most_vms` of these VMs; None = there is none."""
    keys = np.array([zlib.crc32(vm_id.encode()) for vm_id in vm_ids], dtype=np.int64)
    for shards in range(max(least, -(-len(keys) // max(most_vms, 1))), limit + 1):
        if np.bincount(keys % shards, minlength=1).max() <= most_vms:
            return shards
    return None


def split_history(history: HistoryBlock, shards: int) -> list[HistoryBlock]:
    """One block per shard (possibly without VMs)."""
    return [history.select(rows) for rows in _members(history.vm_ids, shards)]


def split_bucket(bucket: BucketBlock, shards: int) -> list[BucketBlock]:
    """One block per shard (possibly without VMs)."""
    return [bucket.select(rows) for rows in _members(bucket.vm_ids, shards)]


def split_posts(forecasts: Sequence[ChallengerForecast], shards: int) -> list[list[ChallengerForecast]]:
    """What challengers said, for each shard (possibly nothing), without quantiles, which no shard uses."""
    parts: list[list[ChallengerForecast]] = [[] for _ in range(shards)]
    for forecast in forecasts:
        for i, rows in enumerate(_members(forecast.vm_ids, shards)):
            if rows:
                parts[i].append(replace(forecast.select(np.array(rows)), quantiles=None))
    return parts


def join_forecasts(blocks: Sequence[ForecastBlock], vm_ids: tuple[str, ...]) -> ForecastBlock:
    """Shard forecasts as one block in the order of `vm_ids`. All blocks must be of the same issue time and share `models`."""
    if len(blocks) == 1 and blocks[0].vm_ids == vm_ids:
        return blocks[0]
    if not blocks or len({(b.issued_s, b.models, b.levels) for b in blocks}) != 1:
        raise ValueError(f"{len(blocks)} shard forecasts of differing issue time or models cannot be joined")
    place = {vm_id: i for i, vm_id in enumerate(v for b in blocks for v in b.vm_ids)}
    order = np.array([place[vm_id] for vm_id in vm_ids], dtype=np.int64)
    names = ("mean", "stddev", "quantiles", "peak_quantiles", "model", "reason", "coverage")
    joined: dict[str, Any] = {name: np.concatenate([getattr(b, name) for b in blocks])[order] for name in names}
    told = [b.outlook for b in blocks if b.outlook is not None]
    return replace(blocks[0], vm_ids=vm_ids, outlook=join_outlooks(told), **joined)
