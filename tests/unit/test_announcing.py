"""What forecasters are told beside buckets: calendars when they change or time moves on, labels when they do, problems once."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from coordinator.announcing import AHEAD_S, SLIDE_S, Announcer
from coordinator.calendars import Calendars
from coordinator.compute.local_pool import LocalPool
from coordinator.forecast.engine import ForecastOptions
from coordinator.forecast.events.model import MAX_OCCURRENCES, Effect, Labels, Notice, Occurrences, Scope
from coordinator.model import BucketBlock, HistoryBlock
from shared.units import BUCKET_S, CPU

NOW_S = 1_763_769_600 // 86_400 * 86_400  # midnight UTC
NIGHTLY = "30 2 * * * duration=45m name=backup category=backup\n"
VMS = {"vm-1": Labels(client="aurora")}


def announcer(folder: Path) -> Announcer:
    return Announcer(Calendars(folder, ZoneInfo("UTC")), history_buckets=576)


@pytest.fixture
def nightly(tmp_path: Path) -> Path:
    (tmp_path / "backup.cron").write_text(NIGHTLY)
    return tmp_path


def test_every_night_of_the_history_and_the_coming_one(nightly: Path) -> None:
    found = announcer(nightly).look(VMS, NOW_S)
    assert found.calendar is not None
    assert found.problems == ()
    assert found.labels == VMS
    assert [(start - NOW_S) / 3600 for start in found.calendar.start_s] == [-45.5, -21.5, 2.5]


def test_nothing_is_told_twice_until_something_changes(nightly: Path) -> None:
    told = announcer(nightly)
    assert told.look(VMS, NOW_S).calendar is not None
    assert told.look(VMS, NOW_S + SLIDE_S - 1).calendar is None
    assert told.look(VMS | {"vm-2": Labels()}, NOW_S + 1).calendar is not None  # a VM came
    assert told.look(VMS, NOW_S + 2).calendar is not None  # and went
    slid = told.look(VMS, NOW_S + SLIDE_S).calendar
    assert slid is not None
    assert slid.start_s.max() < NOW_S + 2 * SLIDE_S + AHEAD_S
    (nightly / "backup.cron").write_text(NIGHTLY.replace("backup", "scan"))
    changed = told.look(VMS, NOW_S + SLIDE_S + 1).calendar
    assert changed is not None
    assert {notice.name for notice in changed.notices} == {"scan"}


def test_without_a_folder_labels_are_told_alone() -> None:
    told = Announcer(None, history_buckets=576)
    found = told.look(VMS, NOW_S)
    assert found.calendar is not None
    assert len(found.calendar) == 0
    assert told.look(dict(VMS), NOW_S + 5 * SLIDE_S).calendar is None


def test_a_calendar_of_too_many_occurrences_is_named_once_and_the_last_good_one_stays(nightly: Path) -> None:
    told = announcer(nightly)
    good = told.look(VMS, NOW_S).calendar
    assert good is not None
    often = "".join(f"*/5 * * * * duration=1m name=n{i} category=scan\n" for i in range(30))
    assert MAX_OCCURRENCES < 30 * 3 * 288
    (nightly / "often.cron").write_text(often)
    refused = told.look(VMS, NOW_S + 1)
    assert len(refused.problems) == 1
    assert "allowed" in refused.problems[0]
    assert refused.calendar is good
    assert told.look(VMS, NOW_S + SLIDE_S).problems == ()
    (nightly / "often.cron").unlink()
    better = told.look(VMS, NOW_S + SLIDE_S + 1).calendar
    assert better is not None
    assert len(better) == len(good)


def test_a_pool_that_was_told_of_an_event_foresees_it() -> None:
    """A campaign that doubles the CPU of one client's VMs, 20 minutes from now; never seen before."""
    mean = np.random.default_rng(1).lognormal(6, 0.05, (2, 5, 96)).astype(np.float32)
    ids = ("vm-1", "vm-2")
    history = HistoryBlock(
        vm_ids=ids, end_s=NOW_S - 2 * BUCKET_S, mean=mean, peak=mean, censored=mean * 0, capacity=np.full((2, 5), 1e4, np.float32)
    )
    now = mean[:, :, -1].astype(np.float64)
    bucket = BucketBlock(
        start_s=NOW_S - BUCKET_S,
        vm_ids=ids,
        host_ids=("h", "h"),
        mean=now,
        peak=now,
        usage=now,
        censored=now * 0,
        allocation=now,
        samples=np.array([60, 60]),
    )
    effect = Effect(factor=tuple(2.0 if r == CPU else float("nan") for r in range(5)))
    notice = Notice(id="c/1", name="sale", category="campaign", scope=Scope(client="aurora"), effect=effect)
    calendar = Occurrences.of([(notice, NOW_S + 4 * BUCKET_S, NOW_S + 9 * BUCKET_S)])
    said = []
    for told in (Occurrences.none(), calendar):
        pool = LocalPool(ForecastOptions(boosting=False, network=False, ring=96, replay=12))
        pool.announce_now(told, {"vm-1": Labels(client="aurora"), "vm-2": Labels(client="borealis")})
        pool.load_now(history)
        said.append(pool.forecast_now(bucket, dict.fromkeys(ids, [1e4] * 5)).mean[:, CPU])
    ratio = said[1] / said[0]
    np.testing.assert_allclose(ratio[0, 4:9], 2.0, rtol=0.2)
    np.testing.assert_allclose(ratio[0, :4], 1.0)
    np.testing.assert_allclose(ratio[1], 1.0)
