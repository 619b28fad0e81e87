"""Bands: calibrated on the fleet, corrected per VM, monotone and bounded always."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.forecast import calibrate
from coordinator.forecast.calibrate import BAND, POOL, POOLED_VMS, PRIOR_SHAPE, TAU, Calibrator
from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_STARTS, GROUPS
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

SHAPE = (N_RESOURCES, HORIZON_STEPS)
PRIOR = (-0.3, 0.6, 0.4)


def calibrator(v: int) -> Calibrator:
    made = Calibrator(1, PRIOR)
    made.rearrange(np.full(v, -1))
    return made


def drive(made: Calibrator, draws: np.ndarray, spread: np.ndarray | None = None) -> np.ndarray:
    """Feed point forecasts 100 and actuals 100 + draws[t, v, r]; bands [t, v, r, h, q]."""
    v = draws.shape[1]
    local = np.ones((v, N_RESOURCES, GROUPS, 2, 1)) * (1.0 if spread is None else spread[:, None, None, None, None])
    bands = []
    for drawn in draws:
        made.learn(np.repeat((100.0 + drawn)[..., None], HORIZON_STEPS, axis=-1))
        bands.append(made.issue(np.full((v, *SHAPE), 100.0), np.ones((v, N_RESOURCES)), local, np.full((v, N_RESOURCES), np.nan)))
    return np.stack(bands)


def shares_below(bands: np.ndarray, draws: np.ndarray, since: int) -> np.ndarray:
    """Realised share of actuals at or below each level, for step 0: [q]."""
    actual = 100.0 + draws[since + 1 :, ..., None]
    return (actual <= bands[since:-1, :, :, 0]).mean(axis=(0, 1, 2))


def test_skewed_noise_is_calibrated_at_every_level() -> None:
    draws = np.random.default_rng(0).exponential(4.0, (300, 20, N_RESOURCES)) - 3.0
    bands = drive(calibrator(20), draws)
    np.testing.assert_allclose(shares_below(bands, draws, 120), LEVELS, atol=0.025)


def test_scale_is_learned_per_vm() -> None:
    sizes = np.repeat([0.5, 20.0], 6)
    draws = np.random.default_rng(1).normal(0, 1, (250, 12, N_RESOURCES)) * sizes[:, None]
    bands = drive(calibrator(12), draws, sizes)
    width = (bands[-1, ..., 5] - bands[-1, ..., 1]).mean(axis=(1, 2))
    np.testing.assert_allclose(width, 2.56 * sizes, rtol=0.35)
    for part in (slice(0, 6), slice(6, 12)):
        np.testing.assert_allclose(shares_below(bands[:, part], draws[:, part], 120), LEVELS, atol=0.04)


def test_a_vm_unlike_its_fleet_finds_its_own_coverage() -> None:
    draws = np.random.default_rng(2).normal(0, 1, (600, 15, N_RESOURCES))
    draws[:, 0] += 2.0  # always forecast too low
    made = calibrator(15)
    bands = drive(made, draws)
    np.testing.assert_allclose(shares_below(bands[:, :1], draws[:, :1], 400), LEVELS, atol=0.06)
    coverage, evidence = made.coverage()
    assert coverage[1:].mean() == pytest.approx(0.8, abs=0.05)
    assert evidence.min() > 36


def test_one_vm_alone_starts_from_the_prior_and_stays_sane() -> None:
    draws = np.random.default_rng(3).normal(0, 1, (200, 1, N_RESOURCES))
    bands = drive(calibrator(1), draws)
    below = shares_below(bands, draws, 50)
    assert 0.93 < below[LEVELS.index(0.975)] <= 1.0
    assert below[LEVELS.index(0.5)] == pytest.approx(0.5, abs=0.1)


def test_a_paused_bucket_keeps_origins_and_actuals_aligned() -> None:
    made = calibrator(1)
    flat = np.full((1, *SHAPE), 100.0)
    arguments = (np.ones((1, N_RESOURCES)), np.ones((1, N_RESOURCES, GROUPS, 2, 1)), np.full((1, N_RESOURCES), np.nan))
    made.issue(flat, *arguments)
    made.learn(np.full_like(flat, np.nan))
    made.pause()
    made.learn(flat + 7.0)  # step 1 of the issue two buckets ago; step 0 fell into the pause
    assert made.coverage()[1][0, 0] == pytest.approx(1 / HORIZON_STEPS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 12), st.booleans())
def test_bands_are_monotone_bounded_and_finite(seed: int, magnitude: float, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    made = calibrator(2)
    capacity = np.array([[10.0**magnitude] * N_RESOURCES, [np.nan] * N_RESOURCES])
    for _ in range(14):
        actual = rng.lognormal(0, 4, (2, *SHAPE)) * 10.0**magnitude
        if holes:
            actual[rng.random(actual.shape) < 0.4] = np.nan
        made.learn(actual)
        point = rng.lognormal(0, 2, (2, *SHAPE)) * 10.0**magnitude
        local = rng.lognormal(0, 5, (2, N_RESOURCES, GROUPS, 2, 1))
        bands = made.issue(point, rng.lognormal(0, 3, (2, N_RESOURCES)), local, capacity)
        assert np.isfinite(bands).all()
        assert (np.diff(bands, axis=-1) >= 0).all()
        assert (bands >= 0).all()
        assert (bands[0] <= np.float32(10.0**magnitude)).all()


class Reference:
    """The same rules in plain numpy, float64, all VMs pooled, whole issues kept."""

    def __init__(self, v: int, prior: tuple[float, ...]) -> None:
        p = len(prior)
        self.prior = np.array(prior)
        self.normal, self.moment = np.zeros((N_RESOURCES, GROUPS, 2, p, p)), np.zeros((N_RESOURCES, GROUPS, 2, p))
        self.beta = np.broadcast_to(self.prior, self.moment.shape)
        self.shape = np.broadcast_to(PRIOR_SHAPE, (*SHAPE, len(TAU))).copy()
        self.offset = np.zeros((v, *SHAPE, len(TAU)))
        self.errors = np.zeros((2, v, N_RESOURCES, GROUPS))
        self.covered = np.zeros((2, v, N_RESOURCES))
        self.pool: list[np.ndarray] = []
        self.said: list[tuple[np.ndarray, ...] | None] = []
        self.count = 0

    def learn(self, actual: np.ndarray) -> None:
        error, scale, band, features, unit = self.heard(actual)
        known = ~np.isnan(error)
        above = actual[..., None] > band * (1 + 1e-6)
        step = np.where(above, TAU, TAU - 1.0) * calibrate.TRACK * (1.0 + np.abs(PRIOR_SHAPE))
        moved = np.clip(self.offset * calibrate.TRACK_LEAK + step, -calibrate.TRACK_LIMIT, calibrate.TRACK_LIMIT)
        self.offset = np.where(known[..., None], moved, self.offset)
        inside = (actual >= band[..., BAND[0]] * (1 - 1e-6)) & ~above[..., BAND[1]] & known
        kept = calibrate.COVERAGE_DECAY ** (known.sum(axis=-1) / HORIZON_STEPS)
        self.covered = self.covered * kept + np.stack([inside.mean(axis=-1), known.mean(axis=-1)])
        count = np.add.reduceat(known.astype(float), GROUP_STARTS, axis=-1)
        size = np.add.reduceat(np.where(known, np.abs(error), 0.0), GROUP_STARTS, axis=-1) / np.maximum(count, 1)
        self.errors = self.errors * np.where(count > 0, calibrate.ERROR_DECAY, 1.0) + np.stack([size, count > 0])
        for i, r, h in np.argwhere(known & (np.arange(HORIZON_STEPS) % 4 == self.count % 4)):  # each step in its turn
            side, row = int(error[i, r, h] < 0), features[i, r, h, int(error[i, r, h] < 0)]
            log = np.clip(np.log(max(abs(error[i, r, h]) / unit[i, r, h], 0.05)), -3.0, 6.0)
            self.normal[r, GROUP_OF_STEP[h], side] += np.outer(row, row)
            self.moment[r, GROUP_OF_STEP[h], side] += row * log
        if self.count % calibrate.POOL_STRIDE == 0:
            self.pool = [*self.pool, error / np.where(error >= 0, scale[..., 0], scale[..., 1])][-POOL:]
        self.count += 1
        self.look()

    def heard(self, actual: np.ndarray) -> tuple[np.ndarray, ...]:
        """(error, scale, bands, features, unit) of what was said of the newest bucket, step by step."""
        v, p, q = len(actual), len(self.prior), len(TAU)
        parts = [np.full((v, *SHAPE, *behind), np.nan) for behind in ((), (2,), (q,), (2, p), ())]
        for step, said in enumerate(self.said[:HORIZON_STEPS]):
            if said is not None:
                point, *others = said
                parts[0][:, :, step] = actual[:, :, step] - point[:, :, step]
                for part, other in zip(parts[1:], others, strict=True):
                    part[:, :, step] = other[:, :, step]
        return tuple(parts)

    def look(self) -> None:
        if self.count % calibrate.RESHAPE_EVERY == 0:
            ridge = calibrate.RIDGE
            right = self.moment + ridge * self.prior
            self.beta = np.linalg.solve(self.normal + ridge * np.eye(len(self.prior)), right[..., None])[..., 0]
            self.normal *= calibrate.FORGET**calibrate.RESHAPE_EVERY
            self.moment *= calibrate.FORGET**calibrate.RESHAPE_EVERY
        for step in range(self.count % calibrate.RESHAPE_EVERY, HORIZON_STEPS, calibrate.RESHAPE_EVERY):
            for r in range(N_RESOURCES):
                pool = np.concatenate([residuals[:, r, step] for residuals in self.pool])
                pool = pool[~np.isnan(pool)]
                independent = len(pool) / max(1.0, (step + 1.0) / calibrate.POOL_STRIDE)
                trust = independent / (independent + calibrate.POOL_PRIOR)
                if len(pool):
                    self.shape[r, step] = trust * np.quantile(pool, TAU) + (1.0 - trust) * PRIOR_SHAPE

    def issue(self, point: np.ndarray, unit: np.ndarray, local: np.ndarray, capacity: np.ndarray) -> np.ndarray:
        own = (self.errors[0] + 3.0 * unit[..., None]) / (self.errors[1] + 3.0)
        relative = np.concatenate([np.repeat(own[..., None, None], 2, axis=-2), local], axis=-1) / unit[..., None, None, None]
        features = np.concatenate([np.ones((*local.shape[:-1], 1)), np.clip(np.log(relative), -3.0, 6.0)], axis=-1)
        scale = np.exp(np.clip((features * self.beta).sum(axis=-1), -3.0, 6.0)) * unit[..., None, None]
        scale, features = scale[:, :, GROUP_OF_STEP], features[:, :, GROUP_OF_STEP]
        z = self.shape + self.offset
        bands = point[..., None] + z * np.where(z > 0, scale[..., :1], scale[..., 1:])
        bands = np.maximum.accumulate(np.maximum(bands, 0.0), axis=-1)
        bands = np.fmin(bands, capacity[..., None, None]).astype(np.float32)
        bands[np.isnan(point)] = np.nan
        self.said.insert(0, (point, scale, bands, features, np.repeat(unit[..., None], HORIZON_STEPS, axis=-1)))
        return bands


def test_the_kernels_do_what_plain_numpy_does() -> None:
    v = 9
    rng = np.random.default_rng(8)
    prior = (-0.3, 0.55, 0.15, 0.1)
    made, reference = Calibrator(2, prior), Reference(v, prior)
    made.rearrange(np.full(v, -1))
    capacity = np.where(rng.random((v, N_RESOURCES)) < 0.5, 60.0, np.nan)
    for bucket in range(40):
        actual = np.maximum(rng.normal(50, 8, (v, *SHAPE)), 0.0).astype(np.float32).astype(np.float64)
        actual[rng.random(actual.shape) < 0.1] = np.nan
        made.learn(actual)
        reference.learn(actual)
        if bucket % 9 == 4:
            made.pause()
            reference.said.insert(0, None)
            continue
        point = rng.normal(50, 3, (v, *SHAPE)).astype(np.float32).astype(np.float64)
        point[rng.random((v, N_RESOURCES)) < 0.1] = np.nan
        given = point, rng.lognormal(0, 1, (v, N_RESOURCES)), rng.lognormal(0, 1, (v, N_RESOURCES, GROUPS, 2, 2)), capacity
        np.testing.assert_allclose(made.issue(*given), reference.issue(*given), rtol=1e-5, atol=1e-5)
    for realised, expected in zip(made.coverage(), (reference.covered[0] / reference.covered[1], reference.covered[1]), strict=True):
        np.testing.assert_allclose(realised, expected, rtol=1e-5)


def test_a_large_fleet_pools_a_sample_of_all_its_vms() -> None:
    v = POOLED_VMS * 2 + 40
    made = Calibrator(1, (0.0, 0.0, 0.0))  # all scales are the unit
    made.rearrange(np.full(v, -1))
    drive(made, np.broadcast_to(np.arange(1.0, v + 1)[:, None], (calibrate.POOL_STRIDE * 2 + 1, v, N_RESOURCES)))
    first, second = (np.sort(made._pool[0, 0, slot]) for slot in (1, 2))
    assert first[0] < 4
    assert first[-1] > v - 4
    assert np.isin(np.diff(first), (2.0, 3.0)).all()
    assert np.intersect1d(first, second).size < POOLED_VMS / 2  # others' turn


def test_an_issue_made_again_takes_the_place_of_the_first() -> None:
    draws = np.random.default_rng(6).normal(0, 1, (40, 3, N_RESOURCES))
    once, twice = calibrator(3), calibrator(3)
    drive(once, draws)
    drive(twice, draws)
    point, unit, capacity = np.full((3, *SHAPE), 100.0), np.ones((3, N_RESOURCES)), np.full((3, N_RESOURCES), np.nan)
    local = np.ones((3, N_RESOURCES, GROUPS, 2, 1))
    twice.issue(point + 50.0, unit * 3, local * 9, capacity)
    twice.withdraw()
    for made in (once, twice):
        made.issue(point, unit, local, capacity)
        made.learn(point + 1.0)
    np.testing.assert_array_equal(once.issue(point, unit, local, capacity), twice.issue(point, unit, local, capacity))
