"""How long a restart waits for history: 14 days of 1,000 VMs from a folder and from S3 (a real server, moto, on this machine).

The days are written as a running coordinator leaves them, one merged part a day. Demand has a daily shape and noise, in whole units, as
real readings have; random bytes would not compress. moto is a Python server: with it, the figure of S3 is mostly the time of the server.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.report import Figure, finish, options
from coordinator.model import N_RESOURCES, HistoryBlock
from coordinator.store.history import ParquetHistory
from coordinator.store.objects import Root
from shared.units import BUCKET_S

DAY = 288
END_S = 1_700_006_400 // 86_400 * 86_400 - BUCKET_S


def fleet(vms: int, days: int) -> HistoryBlock:
    """Demand with a day's shape."""
    rng = np.random.default_rng(1)
    n = days * DAY
    day = 1.0 + 0.5 * np.sin(np.arange(n) * 2 * np.pi / DAY)
    size = rng.uniform(200, 4000, (vms, N_RESOURCES, 1)) * np.array([1, 1e6, 1e3, 1e4, 1e4])[:, None]
    mean = np.rint(size * day * rng.uniform(0.8, 1.2, (vms, N_RESOURCES, n))).astype(np.float32)
    names = tuple(f"{i:08x}-0000-4000-8000-000000000000" for i in range(vms))
    capacity = np.full((vms, N_RESOURCES), np.nan, np.float32)
    return HistoryBlock(
        vm_ids=names, end_s=END_S, mean=mean, peak=np.rint(mean * 1.3), censored=np.zeros(mean.shape, np.float32), capacity=capacity
    )


@contextmanager
def s3() -> Iterator[str]:
    """URL of an empty place on a server of its own."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "contract"))
    from s3_server import running_s3, s3_place  # noqa: PLC0415  # the tests' own server

    os.environ.setdefault("AWS_ACCESS_KEY_ID", "bench")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench")
    with running_s3() as address:
        yield s3_place(address)


def measure(name: str, place: Path | str, block: HistoryBlock, bar_s: float | None) -> list[Figure]:
    """Write, then open and load in a process that knows nothing of it yet."""
    started = time.perf_counter()
    ParquetHistory(place).append_history(block)
    wrote_s = time.perf_counter() - started
    started, cpu = time.perf_counter(), time.process_time()
    history = ParquetHistory(place)
    loaded = history.load(block.vm_ids, block.end_s, block.mean.shape[2])
    took_s, spent_s = time.perf_counter() - started, time.process_time() - cpu
    assert np.array_equal(loaded.mean, block.mean)
    what = f"{block.mean.shape[2] // DAY} days of {len(block.vm_ids)} VMs"
    bar, holds = ("", None) if bar_s is None else (f"<= {bar_s:g} s", took_s <= bar_s)
    return [
        Figure(name=f"{name}: open and load {what}", value=took_s, unit="s", bar=bar, holds=holds),
        Figure(name=f"{name}:   processor seconds of it", value=spent_s, unit="s"),
        Figure(name=f"{name}: write them", value=wrote_s, unit="s"),
        Figure(name=f"{name}: size", value=history.total_bytes / 2**20, unit="MiB"),
        Figure(name=f"{name}: objects", value=len(Root(place).table("buckets").sizes()), unit=""),
    ]


def main() -> None:
    """python -m bench.history [--quick] [--json FILE]"""
    arguments = options(__doc__ or "").parse_args()
    block = fleet(100, 3) if arguments.quick else fleet(1000, 14)
    folder = Path(tempfile.mkdtemp(prefix="tidegate-history-"))
    try:
        figures = measure("folder", folder / "history", block, 5.0)
        with s3() as url:
            figures += measure("S3", url, block, None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish(figures, arguments.json, strict=False)


if __name__ == "__main__":
    main()
