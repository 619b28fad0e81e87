"""What earlier seasons say, carried from bucket to bucket, is what working it out anew says: gaps, repeats, fleets that change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.forecast.history import DemandWindow
from coordinator.forecast.rows import NEW
from coordinator.forecast.seasons import BASE, Profile, Profiles, Seasons
from coordinator.model import F32, N_RESOURCES

STEPS = st.lists(st.sampled_from(["bucket", "bucket", "bucket", "again", "gap", "long gap", "come", "go"]), min_size=3, max_size=25)


def readings(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    values = rng.lognormal(3, 1, shape).astype(np.float32)
    values[rng.random(shape) < 0.1] = np.nan
    return values


def in_order(profile: Profile) -> F32:
    return np.roll(profile.rows, -profile.turn, axis=0)


def afresh(window: DemandWindow, ring: int, vms: int, number: int) -> Profiles:
    seasons = Seasons()
    seasons.rearrange(np.full(vms, NEW))
    return seasons.renew(*views(window, ring, vms), number)


def views(window: DemandWindow, ring: int, vms: int) -> tuple[F32, F32]:
    means, peaks = (part(ring).reshape(vms * N_RESOURCES, -1) for part in (window.means, window.peaks))
    return means, peaks


@pytest.mark.parametrize("ring", [48, 300, 2322])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_carried_is_worked_out_anew(ring: int, data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000), label="seed"))
    vms, window, seasons = 3, DemandWindow(ring), Seasons()
    for part in (window, seasons):
        part.rearrange(np.full(vms, NEW))
    number = data.draw(st.integers(0, 400), label="first bucket")
    for _ in range(data.draw(st.sampled_from([0, 5, 30, 280, 570, 2010, 2700]), label="history")):
        number += 1
        window.append(readings(rng, (vms, N_RESOURCES)), readings(rng, (vms, N_RESOURCES)))
    for step in data.draw(STEPS, label="steps"):
        if step in {"come", "go"}:
            take = np.array([*range(vms), NEW]) if step == "come" else np.arange(1, vms)
            if len(take) == 0:
                continue
            vms = len(take)
            for part in (window, seasons):
                part.rearrange(take)
        if step == "again" and window.length:
            window.merge_newest(readings(rng, (vms, N_RESOURCES)), readings(rng, (vms, N_RESOURCES)))
        else:
            for _ in range({"gap": 3, "long gap": 40}.get(step, 0)):
                number += 1
                window.append(*(np.full((vms, N_RESOURCES), np.nan, dtype=np.float32) for _ in range(2)))
            number += 1
            window.append(readings(rng, (vms, N_RESOURCES)), readings(rng, (vms, N_RESOURCES)))
        for carried, anew in zip(seasons.renew(*views(window, ring, vms), number), afresh(window, ring, vms, number), strict=True):
            assert carried.turn == anew.turn
            np.testing.assert_array_equal(in_order(carried), in_order(anew))


def test_a_column_is_the_median_of_its_phase_on_earlier_days() -> None:
    days = np.arange(4, dtype=np.float32)[:, None] * np.array([1.0, -1.0], dtype=np.float32)[np.arange(288) % 2]
    series = np.tile(days.reshape(-1), (N_RESOURCES, 1))
    seasons = Seasons()
    seasons.rearrange(np.array([NEW]))
    told = seasons.renew(series, series, 4 * 288 - 1)
    phase = (np.arange(12) + 4 * 288) % 2
    np.testing.assert_array_equal(in_order(told.daily_peaks)[:, 0], np.where(phase == 0, 1.5, -1.5).astype(np.float32))
    assert in_order(told.daily).shape == (BASE + 12, N_RESOURCES)
    assert np.isnan(told.weekly.rows).all()  # no week yet
