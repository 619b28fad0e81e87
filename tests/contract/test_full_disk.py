"""What a full disk does to the stores: refused with the reason, nothing durable is lost, and all goes on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_disk import SmallDisk, small_disk

from coordinator.demand.signals import SignalReading
from coordinator.model import N_RESOURCES, SIGNALS, BucketBlock
from coordinator.store.history import ParquetHistory
from coordinator.store.registry import SqlRegistry
from coordinator.store.signal_log import SignalLog
from coordinator.store.wal import Wal
from shared.errors import HostError

pytestmark = pytest.mark.server
FRAME = bytes(range(256)) * 40  # 10 KiB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 2048) as mounted:
        yield mounted


def sequences(folder: Path) -> list[int]:
    wal = Wal(folder)
    found = [record.sequence for _, record in wal.replay()]
    assert wal.damaged_bytes == 0
    wal.close()
    return found


@pytest.mark.parametrize("segment_bytes", [4096, 64 * 2**20], ids=["a segment a record", "one segment"])
def test_the_log_keeps_in_memory_what_the_disk_refused(disk: SmallDisk, segment_bytes: int) -> None:
    wal = Wal(disk.folder / "wal", segment_bytes=segment_bytes)
    for sequence in range(3):
        wal.append("h1", "b1", sequence, FRAME)
        wal.sync()
    disk.fill()
    for sequence in range(3, 6):
        token = wal.append("h1", "b1", sequence, FRAME)
        for _ in range(2):
            with pytest.raises(HostError, match="No space left"):
                wal.sync()
        assert token == sequence
    assert wal.high_water() == {("h1", "b1"): 2}, "none of them is durable"
    disk.free()
    assert wal.sync() == 6
    wal.append("h1", "b1", 6, FRAME)
    assert wal.sync() == 7
    on_disk = sum(path.stat().st_size for path in (disk.folder / "wal").iterdir())
    assert wal.total_bytes == on_disk
    wal.close()
    assert sequences(disk.folder / "wal") == list(range(7))


def test_a_kill_on_a_full_disk_loses_only_what_was_not_durable(disk: SmallDisk) -> None:
    wal = Wal(disk.folder / "wal")
    wal.append("h1", "b1", 0, FRAME)
    wal.sync()
    disk.fill()
    wal.append("h1", "b1", 1, FRAME)
    with pytest.raises(HostError, match="No space left"):
        wal.sync()
    again = Wal(disk.folder / "wal")  # as another process would, after a kill
    assert [record.sequence for _, record in again.replay()] == [0]
    assert (again.high_water(), again.next_token) == ({("h1", "b1"): 0}, 1)
    disk.free()
    again.append("h1", "b1", 1, FRAME)
    again.sync()
    again.close()
    found = Wal(disk.folder / "wal")
    assert [record.sequence for _, record in found.replay()] == [0, 1]
    found.close()


def test_a_trim_makes_room_on_a_full_disk_and_keeps_the_table(disk: SmallDisk) -> None:
    wal = Wal(disk.folder / "wal", segment_bytes=4096)
    for sequence in range(4):
        wal.append("h1", "b1", sequence, FRAME)
        wal.sync()
    disk.fill()
    wal.append("h1", "b1", 4, FRAME)
    with pytest.raises(HostError, match="No space left"):
        wal.sync()
    wal.trim(3)
    assert wal.sync() == 5, "three old segments gave more room than one record needs"
    wal.close()
    again = Wal(disk.folder / "wal")
    assert [record.sequence for _, record in again.replay()] == [3, 4]
    assert again.high_water() == {("h1", "b1"): 4}
    again.close()


def test_signals_that_were_refused_can_be_told_again(disk: SmallDisk) -> None:
    log = SignalLog(disk.folder / "signals")
    reading = SignalReading(at_s=1_789_344_000.0, vm_ids=("vm1",) * 200, values=(1.0,) * len(SIGNALS))
    log.append([reading])
    log.sync()
    disk.fill()
    log.append([reading] * 20)
    with pytest.raises(HostError, match="No space left"):
        log.sync()
    disk.free()
    log.sync()
    log.close()
    again = SignalLog(disk.folder / "signals")
    assert len(list(again.replay())) == 21
    again.close()


def test_the_registry_says_so_and_takes_the_same_write_later(disk: SmallDisk) -> None:
    registry = SqlRegistry(f"sqlite:///{disk.folder}/registry.sqlite")
    registry.save_document("a", "small")
    disk.fill()
    with pytest.raises(HostError, match=r"disk is full|disk I/O error"):
        registry.save_document("a", "x" * 300_000)
    disk.free()
    registry.save_document("b", "y" * 20_000)
    assert registry.documents() == {"a": "small", "b": "y" * 20_000}
    registry.close()


def test_a_start_on_a_full_disk_is_an_outage_and_no_fault_of_the_settings(disk: SmallDisk) -> None:
    url = f"sqlite:///{disk.folder}/registry.sqlite"
    first = SqlRegistry(url)
    first.next_epoch()
    first.close()
    disk.fill()
    with pytest.raises(HostError, match=r"disk is full|disk I/O error|unable to open"):
        SqlRegistry(url).next_epoch()
    disk.free()
    again = SqlRegistry(url)
    assert again.next_epoch() == 2
    again.close()


def test_a_bucket_that_was_refused_is_stored_once(disk: SmallDisk) -> None:
    values = np.ones((300, N_RESOURCES), np.float32) * np.random.default_rng(1).random((300, N_RESOURCES), np.float32)
    names = tuple(f"vm-{n:04}" for n in range(300))
    block = BucketBlock(
        start_s=1_789_344_000,
        vm_ids=names,
        host_ids=("h1",) * 300,
        samples=np.full(300, 60, np.int32),
        mean=values,
        peak=values,
        censored=values,
        usage=values,
        allocation=values,
    )
    history = ParquetHistory(disk.folder / "history")
    disk.fill()
    for _ in range(2):
        with pytest.raises((HostError, OSError), match="No space left"):
            history.append_buckets(block)
    disk.free()
    history.append_buckets(block)
    found = ParquetHistory(disk.folder / "history")
    assert np.array_equal(found.load(names, block.start_s, 1).mean[:, :, 0], values)
    assert len(list((disk.folder / "history" / "buckets").iterdir())) == 1
