"""The log of what applications told: a kill at any moment loses no reading that was answered for, and no mean becomes a part of itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.demand.signals import AHEAD_S, LATE_S, SignalBlock, SignalFolder, SignalReading
from coordinator.store.signal_log import LOG_CLOSINGS, SignalLog
from shared.errors import Refusal
from shared.refusal import RefusalCode
from shared.units import BUCKET_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
GRACE_S = 10


def reading(at_s: float, rate: float = 1.0) -> SignalReading:
    return SignalReading(at_s, ("a", "b"), (rate, None))


def test_what_was_synced_is_read_back(tmp_path: Path) -> None:
    log = SignalLog(tmp_path)
    log.append([reading(T0), reading(T0 + 10)])
    log.sync()
    log.append([reading(T0 + 20)])  # never synced: nobody was told that it lasts
    again = SignalLog(tmp_path)
    assert list(again.replay()) == [reading(T0), reading(T0 + 10)]
    again.close()
    log.close()


def test_a_full_log_refuses_and_keeps_its_marks(tmp_path: Path) -> None:
    log = SignalLog(tmp_path, max_bytes=64 * 1024)
    with pytest.raises(Refusal) as refusal:
        for at_s in range(T0, T0 + 10**6):
            log.append([reading(at_s)] * 20)
    assert refusal.value.code is RefusalCode.RATE_LIMITED
    for i in range(2 * LOG_CLOSINGS):
        log.settled(log.close_bucket(T0 + i * BUCKET_S))
    log.append([reading(T0)])  # there is room again
    log.close()


def test_the_log_stays_small(tmp_path: Path) -> None:
    log = SignalLog(tmp_path)
    sizes = []
    for i in range(40):
        for at_s in range(T0 + i * BUCKET_S, T0 + (i + 1) * BUCKET_S, 10):
            log.append([reading(at_s)])
        log.settled(log.close_bucket(T0 + i * BUCKET_S))
        sizes.append(log.total_bytes)
    assert max(sizes[20:]) < 1.1 * max(sizes[:12])
    log.close()
    oldest = min(one.at_s for one in SignalLog(tmp_path).replay())
    assert oldest >= T0 + 39 * BUCKET_S - LATE_S


class Coordinator:
    """What main.py does with the log, the folder and the history, a step at a time. What is `stored` survives a kill."""

    def __init__(self, folder: Path, stored: dict[tuple[int, str], float]) -> None:
        self.folder, self.stored = folder, stored
        self.log, self.signals = SignalLog(folder), SignalFolder()
        for told in self.log.replay():
            self.signals.tell(told)

    def tell(self, told: SignalReading) -> None:
        self.log.append([told])
        self.signals.tell(told)
        self.log.sync()

    def tick(self, now_s: float, *, die_before_store: bool = False) -> None:
        blocks = self.signals.close(int(now_s) - BUCKET_S - GRACE_S)
        if blocks is None:
            return
        place = self.log.close_bucket(self.signals.closed_s)
        if die_before_store:
            return
        for block in blocks:
            self.store(block)
        self.log.settled(place)

    def killed(self) -> Coordinator:
        """Its successor, which finds the disk as it is now. (The dead one's file is closed only for the sake of the test.)"""
        left = self.folder.with_name(f"{self.folder.name}-")
        shutil.copytree(self.folder, left)
        self.log.close()
        return Coordinator(left, self.stored)

    def store(self, block: SignalBlock) -> None:
        for vm_id, mean in zip(block.vm_ids, block.means[:, 0], strict=True):
            self.stored[block.start_s, vm_id] = float(mean)


@pytest.mark.parametrize("bucket_of_the_kill", [2, 5, *range(LOG_CLOSINGS, LOG_CLOSINGS + LATE_S // BUCKET_S + 2)])
def test_a_part_of_a_bucket_never_takes_the_place_of_the_whole(tmp_path: Path, bucket_of_the_kill: int) -> None:
    """At some moment the log holds the reading that came late and no longer the others: that bucket is settled."""
    one = Coordinator(tmp_path / "log", {})
    one.tell(reading(T0 + 10, 1.0))
    for second in range(60, bucket_of_the_kill * BUCKET_S, 60):
        one.tick(T0 + second)
        one.tell(reading(T0 + second, 1.0))
        if second == LATE_S:
            one.tell(reading(T0 + 20, 7.0))
    one = one.killed()
    one.tick(T0 + (bucket_of_the_kill + 1) * BUCKET_S)
    assert one.stored[T0, "a"] == pytest.approx((5 + 7 * (bucket_of_the_kill > 3)) / (5 + (bucket_of_the_kill > 3)))
    one.log.close()


# a moment of the story: seconds that pass, how late (or early) a reading is told, whether the process is killed after it
STORY = st.lists(st.tuples(st.integers(0, 400), st.integers(-AHEAD_S, LATE_S), st.sampled_from(["", "", "", "kill", "die"])), max_size=50)


@settings(max_examples=40, deadline=None)
@given(story=STORY)
def test_any_story_of_kills_ends_with_every_mean_whole(tmp_path_factory: pytest.TempPathFactory, story: list[tuple[int, int, str]]) -> None:
    root = tmp_path_factory.mktemp("signals")
    one = Coordinator(root / "log", {})
    now_s, slots = T0, {}
    for i, (passed, late, fate) in enumerate(story):
        for _ in range(passed // 50):  # ticks come more often than readings
            now_s += 50
            one.tick(now_s)
        now_s += passed % 50
        one.tick(now_s, die_before_store=fate == "die")
        low, high = one.signals.span_s(now_s)
        at_s = min(max(now_s - late, low), high)
        if fate != "die":
            one.tell(reading(at_s, float(i)))
            slots[at_s // BUCKET_S * BUCKET_S, at_s // 10] = float(i)
        if fate:
            one = one.killed()
    one = one.killed()
    one.tick(now_s + 2 * BUCKET_S + GRACE_S + AHEAD_S)
    for start_s in {start_s for start_s, _ in slots}:
        expected = np.mean([rate for (start, _), rate in slots.items() if start == start_s])
        assert one.stored[start_s, "a"] == pytest.approx(expected)
        assert one.stored[start_s, "b"] == pytest.approx(expected)
    assert {start_s for start_s, _ in one.stored} == {start_s for start_s, _ in slots}
    one.log.close()
    shutil.rmtree(root)
