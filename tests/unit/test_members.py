"""The pool's fast passes say what the plain kernels and NumPy say, on any series and any length; lanes do not hear one another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from coordinator.forecast import kernels
from coordinator.forecast.kernels.lanes import WIDE, flat, season_medians, sort_lanes, sorting_pairs
from coordinator.forecast.locality import local_features, usual_change
from coordinator.forecast.members import ALPHAS, MEMBERS, PEAK_MEMBERS, SMOOTHING_WINDOW, Window, look, mean_members, peak_members
from coordinator.forecast.rows import NEW
from coordinator.forecast.seasons import Profiles, Seasons
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

LENGTHS = [1, 2, 5, 11, 12, 40, 100, 288, 700, 2322, 4400]


class Plain(NamedTuple):
    filled: F64
    readings: F64
    age: F64
    hour: F64
    hours3: F64
    level: F64
    step: F64
    step_hour: F64


def plain_look(series: F32) -> Plain:
    filled, readings, age = kernels.fill_gaps(series[:, -SMOOTHING_WINDOW:])
    change = np.abs(np.diff(filled, axis=1, prepend=filled[:, :1]))
    levels = np.array([0.1, 0.5, 0.9])
    hour, hours3 = (kernels.window_quantiles(filled, width, levels) for width in (12, 36))
    return Plain(filled, readings, age, hour, hours3, filled.mean(axis=1), change.mean(axis=1), change[:, -12:].mean(axis=1))


def plain_season(series: F32, filled: F64, season: int, seasons: int, reach: int) -> F64:
    usable = min((series.shape[1] - 6) // season, seasons)
    if usable < 1:
        return np.full((len(series), HORIZON_STEPS), np.nan)
    profile = kernels.season_profile(series, 6, HORIZON_STEPS, season, usable, reach)
    apart = filled[:, -6:] - profile[:, :6]
    shift = np.nansum(apart, axis=1) / np.maximum(np.isfinite(apart).sum(axis=1), 1)
    curve: F64 = profile[:, 6:] + shift[:, None] * 0.97 ** np.arange(1, HORIZON_STEPS + 1)
    return curve


def plain_means(series: F32, seen: Plain, damped: F64) -> F64:
    rows = [
        np.repeat(seen.filled[:, -1:], HORIZON_STEPS, axis=1),
        np.repeat(kernels.smooth_best(seen.filled, ALPHAS)[0][:, None], HORIZON_STEPS, axis=1),
        kernels.run_damped(seen.filled, damped, HORIZON_STEPS),
        np.repeat(seen.hour[:, 1:2], HORIZON_STEPS, axis=1),
        np.repeat(seen.hours3[:, 1:2], HORIZON_STEPS, axis=1),
        plain_season(series, seen.filled, 288, 7, 1),
        plain_season(series, seen.filled, 2016, 3, 1),
        plain_season(series, seen.filled, 12, 12, 0),
    ]
    bounded: F64 = np.maximum(np.stack(rows), 0.0)
    return bounded


def plain_peaks(peaks: F32, seen: Plain, means: F64, point: F64) -> F64:
    b = peaks.shape[1]
    recent, below = seen.filled[:, -36:], means[:, -36:]
    ratio = np.median((recent + 1e-9) / (np.minimum(below, recent) + 1e-9), axis=1)
    lasts = np.maximum.accumulate(seen.filled[:, : -HORIZON_STEPS - 1 : -1], axis=1)
    lasts = np.concatenate([lasts, np.repeat(lasts[:, -1:], HORIZON_STEPS - lasts.shape[1], axis=1)], axis=1)
    daily = np.full(point.shape, np.nan)
    if b >= 288:
        daily = np.fmax.accumulate(kernels.season_profile(peaks, 0, HORIZON_STEPS, 288, min(b // 288, 7), 0), axis=1)
    first = np.maximum.accumulate(point, axis=1) * np.minimum(ratio, 20.0)[:, None]
    usual = kernels.sliding_maxima(seen.filled, 72, HORIZON_STEPS)
    bounded: F64 = np.maximum(np.stack([first, usual, lasts, np.repeat(lasts[:, -1:], HORIZON_STEPS, axis=1), daily]), 0.0)
    return bounded


def mixed(n: int, b: int, seed: int = 1) -> F32:
    """Series of every resource's size; gaps, none, one reading, constant, zero, a step, and heavier than any tail, among plain ones."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(3, 1, (n, 1)) * np.resize([1e1, 1e7, 1e5, 1e5, 1e5], n)[:, None]
    data = sizes * np.abs(1 + 0.3 * np.sin(np.arange(b) / 46) + 0.1 * rng.standard_normal((n, b)))
    data[:30][rng.random((30, b)) < 0.3] = np.nan
    data[3] = np.nan
    data[4, :-1] = np.nan
    data[5], data[6] = 7.0, 0.0
    data[7, b // 2 :] = 1e9
    data[8] = rng.lognormal(0, 4, b) * 1e12
    series: F32 = data.astype(np.float32)
    return series


def profiles_of(means: F32, peaks: F32 | None = None) -> Profiles:
    seasons = Seasons(per=1)
    seasons.rearrange(np.full(len(means), NEW))
    return seasons.renew(means, means if peaks is None else peaks, 0)


def close(fast: F64, plain: F64, size: F64) -> None:
    """Within 1e-5 of the value or of a usual change, unknown where it is unknown."""
    np.testing.assert_array_equal(np.isnan(fast), np.isnan(plain))
    apart = np.nan_to_num(np.abs(fast - plain) / (np.abs(plain) + size + 1e-6))
    assert apart.max() < 1e-5


@pytest.mark.parametrize("b", LENGTHS)
def test_fast_passes_say_what_the_plain_kernels_say(b: int) -> None:
    n = 2 * WIDE + 6
    series = mixed(n, b)
    peaks = (series * 1.3).astype(np.float32)
    peaks[10:20][np.random.default_rng(2).random((10, b)) < 0.3] = np.nan
    seen, plain = look(series), plain_look(series)
    for name in Window._fields:
        fast, slow = getattr(seen, name), getattr(plain, name)
        np.testing.assert_allclose(fast, slow, rtol=1e-6, atol=1e-9, err_msg=name)
    damped = kernels.fit_damped(plain.filled)[0]
    profiles = profiles_of(series, peaks)
    means = mean_members(seen, damped, profiles)
    assert means.shape == (len(MEMBERS), n, HORIZON_STEPS)
    close(means, plain_means(series, plain, damped), plain.step[:, None])
    point = means[1] * np.linspace(1.4, 0.6, HORIZON_STEPS)
    said = peak_members(look(peaks), seen.filled, point, profiles)
    assert said.shape == (len(PEAK_MEMBERS), n, HORIZON_STEPS)
    close(said, plain_peaks(peaks, plain_look(peaks), plain.filled, point), plain.step[:, None])


def test_a_view_of_a_ring_is_read_like_a_copy_and_neighbours_do_not_matter() -> None:
    ring = np.full((WIDE + 5, 900), np.nan, dtype=np.float32)
    ring[:, 100:800] = mixed(WIDE + 5, 700)
    view, damped = ring[:, 100:800], np.tile([0.3, 0.05, 0.9], (WIDE + 5, 1))
    whole = mean_members(look(view), damped, profiles_of(view))
    np.testing.assert_array_equal(whole, mean_members(look(view.copy()), damped, profiles_of(view.copy())))
    alone = view[WIDE + 2 : WIDE + 3]
    np.testing.assert_array_equal(whole[:, WIDE + 2 : WIDE + 3], mean_members(look(alone), damped[:1], profiles_of(alone)))
    assert not look(view).filled[3].any()


def test_nothing_to_look_at() -> None:
    none = np.zeros((0, 300), dtype=np.float32)
    assert mean_members(look(none), np.zeros((0, 3)), profiles_of(none)).shape == (len(MEMBERS), 0, HORIZON_STEPS)
    peaks = peak_members(look(none), look(none).filled, np.zeros((0, HORIZON_STEPS)), profiles_of(none))
    assert peaks.shape == (len(PEAK_MEMBERS), 0, HORIZON_STEPS)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9, 12, 35, 36])
def test_sorting_pairs_sort(count: int) -> None:
    rows = np.random.default_rng(count).integers(0, 5, (40, WIDE)).astype(np.float32)
    rows[0, :3] = np.inf
    expected = rows.copy()
    expected[:count] = np.sort(rows[:count], axis=0)
    sort_lanes(rows, sorting_pairs(count))
    np.testing.assert_array_equal(rows, expected)


def test_flat_gives_the_memory_itself_where_it_can() -> None:
    ring = np.arange(40, dtype=np.float32).reshape(4, 10)
    found, apart = flat(ring[1:, 2:9])
    assert (apart, len(found)) == (10, 27)
    assert np.shares_memory(found, ring)
    assert not found.flags.writeable
    for awkward in (ring.T, ring[:, ::2]):
        found, apart = flat(awkward)
        np.testing.assert_array_equal(found.reshape(-1, apart), awkward)


def test_seasons_of_a_short_past() -> None:
    past = np.array([1, 2, 3, 4, 5, 6, 7, np.nan, 9], dtype=np.float32)
    work, out = np.full((3, WIDE), np.inf, dtype=np.float32), np.empty(WIDE, dtype=np.float32)
    told = season_medians(past, 9, 4, 4, 1, work, sorting_pairs(3), out)
    # bucket 9: means of (5, 6, 7) 4..6 and of (1, 2, 3) 0..2; bucket 12: 8 is missing, 9 alone is beside it, and buckets 3..5
    np.testing.assert_allclose(out[:4], [(6 + 2) / 2, (6.5 + 3) / 2, (8 + 4) / 2, (9 + 5) / 2])
    assert told == 4


def test_what_an_error_depends_on() -> None:
    v = 3
    seen = look(mixed(v * N_RESOURCES + 15, 300)[15 : 15 + v * N_RESOURCES])
    unit, floor = usual_change(seen, (v, N_RESOURCES))
    assert (floor > 0).all()
    assert (unit >= floor).all()
    point = seen.hour[:, 1].reshape(v, N_RESOURCES, 1).repeat(HORIZON_STEPS, axis=2)
    said = np.stack([point * 0.9, point * 1.2, np.full_like(point, np.nan)])
    local = local_features(seen, said, point, floor)
    nobody = local_features(look(np.zeros((0, 5), dtype=np.float32)), said[:, :0], point[:0], floor[:0])
    assert nobody.shape == (0, *local.shape[1:])
    boosted = np.stack([0.3 * point, np.full_like(point, np.nan)], axis=-1)
    with_model = local_features(seen, said, point, floor, boosted)
    np.testing.assert_array_equal(with_model[..., :4], local)
    np.testing.assert_allclose(with_model[..., 2, 0, 4], 0.3 * point[..., 0] + floor)
    np.testing.assert_array_equal(with_model[..., 1, 4], local[..., 1, 0])  # silent: the spread of the last hours stands in
    shape = (v, N_RESOURCES)
    np.testing.assert_allclose(local[..., 0, 0, 0], (seen.hours3[:, 2] - seen.hours3[:, 1]).reshape(shape) + floor)
    np.testing.assert_allclose(local[..., 2, 1, 0], (seen.hours3[:, 1] - seen.hours3[:, 0]).reshape(shape) + floor)
    np.testing.assert_allclose(local[..., 1, 1, 1], seen.step_hour.reshape(shape) + floor)
    np.testing.assert_allclose(local[..., 1, 0, 2], 0.15 * point[..., 0] + floor, rtol=1e-6)  # what is said is float32
    np.testing.assert_allclose(local[..., 0, 1, 3], point[..., 0] + floor)
