"""The write-ahead log: durable after sync, torn tails lose only what was never synced, trimming forgets no sequence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.store.wal import Wal, WalFull, WalRecord


def filled(folder: Path, frames: int, **kwargs: int) -> Wal:
    wal = Wal(folder, **kwargs)
    for sequence in range(frames):
        wal.append("h1", "b1", sequence, b"frame-%d" % sequence)
    wal.sync()
    return wal


def sequences(wal: Wal) -> list[int]:
    return [record.sequence for _, record in wal.replay()]


def test_what_was_synced_is_there_after_a_restart(tmp_path: Path) -> None:
    wal = filled(tmp_path, 3)
    wal.append("h2", "b9", 7, b"x" * 1000)
    assert wal.sync() == 4
    again = Wal(tmp_path)
    assert list(again.replay())[-1] == (3, WalRecord("h2", "b9", 7, b"x" * 1000))
    assert again.next_token == 4
    assert again.high_water() == {("h1", "b1"): 2, ("h2", "b9"): 7}
    wal.close()


def test_unsynced_records_are_not_durable_and_not_in_the_high_water(tmp_path: Path) -> None:
    wal = filled(tmp_path, 2)
    wal.append("h1", "b1", 2, b"lost")
    assert wal.high_water() == {("h1", "b1"): 1}
    again = Wal(tmp_path)
    assert sequences(again) == [0, 1]
    assert again.append("h1", "b1", 2, b"sent again") == 2
    again.close()
    assert sequences(Wal(tmp_path)) == [0, 1, 2]
    wal.close()


@given(cut=st.integers(0, 400))
def test_any_torn_tail_leaves_a_readable_prefix(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("wal")
    filled(folder, 8).close()
    (segment,) = folder.glob("*.wal")
    content = segment.read_bytes()
    segment.write_bytes(content[: max(0, len(content) - cut)])
    wal = Wal(folder)
    kept = sequences(wal)
    assert kept == list(range(len(kept)))
    assert wal.high_water() == ({("h1", "b1"): kept[-1]} if kept else {})
    assert wal.append("h1", "b1", len(kept), b"next") == len(kept)
    wal.close()
    assert sequences(Wal(folder)) == list(range(len(kept) + 1))


def test_a_torn_first_record_of_a_new_segment_is_accepted_again(tmp_path: Path) -> None:
    """The table at a segment's head must not claim what stands behind it in the same segment."""
    filled(tmp_path, 2).close()
    filled_again = Wal(tmp_path)
    filled_again.append("h1", "b1", 2, b"torn")
    filled_again.close()
    newest = max(tmp_path.glob("*.wal"))
    newest.write_bytes(newest.read_bytes()[:-1])
    wal = Wal(tmp_path)
    assert wal.high_water() == {("h1", "b1"): 1}
    assert wal.damaged_bytes > 0


def test_trim_drops_old_segments_and_keeps_the_table(tmp_path: Path) -> None:
    wal = filled(tmp_path, 5)
    wal.trim(wal.next_token)
    assert sequences(wal) == [0, 1, 2, 3, 4]  # the newest segment always stays
    wal.append("h2", "b1", 0, b"other")
    mark = wal.next_token
    wal.sync()
    wal.trim(mark)
    assert [record.host_id for _, record in wal.replay()] == ["h2"]
    wal.close()
    again = Wal(tmp_path)
    assert again.high_water() == {("h1", "b1"): 4, ("h2", "b1"): 0}
    assert again.next_token == 6


def test_trim_keeps_a_segment_with_one_record_still_needed(tmp_path: Path) -> None:
    wal = filled(tmp_path, 5)
    wal.trim(0)
    wal.append("h1", "b1", 5, b"later")
    wal.sync()
    wal.trim(4)  # record 4 lies in the first segment
    assert sequences(wal) == [0, 1, 2, 3, 4, 5]
    wal.trim(5)
    assert sequences(wal) == [5]
    wal.close()


def test_segments_roll_by_size(tmp_path: Path) -> None:
    wal = Wal(tmp_path, segment_bytes=4096)
    for sequence in range(20):
        wal.append("h1", "b1", sequence, bytes(1000))
        wal.sync()
    assert len(list(tmp_path.glob("*.wal"))) == 5  # a record is 1,029 bytes: four to a segment
    assert sequences(wal) == list(range(20))
    assert wal.total_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.wal"))
    wal.close()


def test_a_full_log_refuses_and_recovers_after_a_trim(tmp_path: Path) -> None:
    wal = Wal(tmp_path, max_bytes=40_000, segment_bytes=4096)
    with pytest.raises(WalFull, match="allowed 40000"):
        for sequence in range(1000):
            wal.append("h1", "b1", sequence, bytes(1000))
            wal.sync()
    assert not wal.has_room()
    wal.trim(wal.next_token)
    assert wal.has_room()
    wal.append("h1", "b1", 1000, bytes(1000))
    wal.close()


def test_a_flipped_bit_ends_its_segment_only(tmp_path: Path) -> None:
    filled(tmp_path, 4).close()
    (first,) = tmp_path.glob("*.wal")
    second = Wal(tmp_path)
    second.append("h1", "b1", 4, b"whole")
    second.close()
    content = bytearray(first.read_bytes())
    content[-3] ^= 1
    first.write_bytes(content)
    assert sequences(Wal(tmp_path)) == [0, 1, 2, 4]


def test_the_number_of_remembered_boots_is_bounded(tmp_path: Path) -> None:
    wal = Wal(tmp_path, boots_per_host=3)
    for boot in range(10):
        wal.append("h1", f"b{boot}", 0, b"")
    wal.sync()
    assert list(wal.high_water()) == [("h1", "b7"), ("h1", "b8"), ("h1", "b9")]
    wal.close()


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segment_bytes 100: allowed 4096"):
        Wal(tmp_path, segment_bytes=100)
