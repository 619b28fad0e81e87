"""Coverage held online: it comes back from a biased start, idle at zero moves nothing, and the kernels do what plain numpy does."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest

from coordinator.forecast.calibrate import PRIOR_SHAPE
from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_SIZES, GROUP_STARTS, GROUPS
from coordinator.forecast.kernels.tracking import CLASSES, LEAK, LIMIT, STEP, Q
from coordinator.forecast.track import POOLED_GAIN, Tracker
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

TAU = np.array(LEVELS)
LOW, HIGH, TOP = LEVELS.index(0.1), LEVELS.index(0.9), LEVELS.index(0.975)
UP = TAU * STEP * (1.0 + np.abs(PRIOR_SHAPE))
DOWN = (TAU - 1.0) * STEP * (1.0 + np.abs(PRIOR_SHAPE))
EDGES = np.array([0.0, *((TAU[1:] + TAU[:-1]) / 2.0), 1.0])
NORMAL = np.array([-1.960, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449, 1.960, 2.3263])  # its quantiles at LEVELS


def bands(v: int, centre: float, spread: float) -> F32:
    return np.broadcast_to(centre + spread * NORMAL, (v, N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)


def sizes(v: int, unit: float = 1.0, level: float = 10.0) -> tuple[F64, F64, F64]:
    """Unit, level, no capacity."""
    return np.full((v, N_RESOURCES), unit), np.full((v, N_RESOURCES), level), np.full((v, N_RESOURCES), np.nan)


def known(value: F64) -> F64:
    """float64[v, r] -> an actual for each step."""
    return np.repeat(value[..., None], HORIZON_STEPS, axis=-1)


def fleet(v: int, pace: float = 1.0) -> Tracker:
    tracker = Tracker(pace)
    tracker.rearrange(np.full(v, -1))
    return tracker


class Plain:
    """The same rules in numpy, a list of whole issues and float64: what the kernels must come to."""

    def __init__(self, v: int) -> None:
        self.own: F64 = np.zeros((v, N_RESOURCES, GROUPS, Q))
        self.pooled: F64 = np.zeros((N_RESOURCES, CLASSES, HORIZON_STEPS, Q))
        self.said: list[tuple[F32, np.ndarray] | None] = []

    def learn(self, actual: F64) -> None:
        moves = np.zeros((*actual.shape, Q))
        heard = np.zeros(actual.shape, dtype=bool)
        for step, said in enumerate(self.said):
            if said is None:
                continue
            band, classes, came = said[0][:, :, step], said[1], actual[..., step]
            told = np.isfinite(came) & np.isfinite(band[..., 0])
            below = lie_below(came, band)
            move = np.where(told[..., None], UP * (1.0 - below) + DOWN * below, 0.0)
            moves[..., step, :], heard[..., step] = move, told
            for resource in range(N_RESOURCES):
                for group in range(CLASSES):
                    votes = told[:, resource] & (classes[:, resource] == group)
                    count = int(votes.sum())
                    if count:
                        gain = min(POOLED_GAIN, 1.0 + count / 8.0)
                        self.pooled[resource, group, step] += gain * move[votes, resource].mean(axis=0)
        total = np.add.reduceat(moves, GROUP_STARTS, axis=2)
        scored = np.add.reduceat(heard.astype(np.float64), GROUP_STARTS, axis=2)[..., None]
        self.own = np.clip(self.own * np.where(scored > 0, LEAK, 1.0) + total / GROUP_SIZES[:, None], -LIMIT, LIMIT)
        np.clip(self.pooled, -LIMIT, LIMIT, out=self.pooled)

    def hold(self, quantiles: F32, unit: F64, level: F64, capacity: F64) -> F32:
        restless = unit / (level + unit)
        classes = np.zeros(unit.shape, dtype=np.int64)
        for resource in range(N_RESOURCES):
            ours = np.isfinite(restless[:, resource])
            if ours.sum() >= 3 * CLASSES:
                bounds = np.quantile(restless[ours, resource], (1 / 3, 2 / 3))
                classes[:, resource] = np.searchsorted(bounds, np.nan_to_num(restless[:, resource]))
        spread = (quantiles[..., HIGH] - quantiles[..., LOW]).astype(np.float64) / 2.0 + 0.1 * unit[..., None]
        offset = self.own[:, :, GROUP_OF_STEP] + self.pooled[np.arange(N_RESOURCES)[None, :], classes]
        held = np.maximum(np.sort(quantiles + offset * spread[..., None], axis=-1), 0.0)
        held = np.where(np.isnan(capacity)[..., None, None], held, np.minimum(held, capacity[..., None, None]))
        result: F32 = held.astype(np.float32)
        self.said = [(result, classes), *self.said[: HORIZON_STEPS - 1]]
        return result


def lie_below(came: F64, band: F32) -> F64:
    value = came[..., None]
    tied = np.abs(value - band) <= 1e-6 * np.abs(value) + 1e-9
    first = tied.argmax(axis=-1)
    last = Q - 1 - tied[..., ::-1].argmax(axis=-1)
    low, high = EDGES[first][..., None], EDGES[last + 1][..., None]
    shared = np.clip((TAU - low) / (high - low), 0.0, 1.0)
    return np.where(np.any(tied, axis=-1, keepdims=True), shared, (value < band).astype(np.float64))


def test_kernels_equal_plain_numpy() -> None:
    """Whatever comes: ties at zero and at the capacity, gaps, silent series, pauses, a bucket issued twice."""
    rng = np.random.default_rng(11)
    v = 14
    tracker, plain = fleet(v), Plain(v)
    for bucket in range(60):
        if bucket:
            came = np.maximum(rng.normal(4.0, 4.0, (v, N_RESOURCES, HORIZON_STEPS)), 0.0).astype(np.float32).astype(np.float64)
            came[:3] = np.minimum(came[:3], 6.0)
            came[rng.random((v, N_RESOURCES)) < 0.1] = np.nan
            tracker.learn(came)
            plain.learn(came)
        if bucket in {20, 21}:
            tracker.pause()
            plain.said = [None, *plain.said[: HORIZON_STEPS - 1]]
            continue
        said = np.maximum(np.sort(rng.normal(4.0, 3.0, (v, N_RESOURCES, HORIZON_STEPS, Q)), axis=-1), 0.0).astype(np.float32)
        said[rng.random((v, N_RESOURCES)) < 0.1] = np.nan
        unit, level = rng.uniform(0.5, 2.0, (v, N_RESOURCES)), rng.uniform(1.0, 9.0, (v, N_RESOURCES))
        level[4] = np.nan
        capacity = np.full((v, N_RESOURCES), np.nan)
        capacity[:3] = 6.0
        if bucket == 30:
            tracker.hold(said * np.float32(3.0), unit, level, capacity)
            plain.hold(said * np.float32(3.0), unit, level, capacity)
            tracker.withdraw()
            plain.said = plain.said[1:]
        np.testing.assert_allclose(tracker.hold(said, unit, level, capacity), plain.hold(said, unit, level, capacity), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(tracker._own, plain.own, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tracker._pooled, plain.pooled, rtol=1e-5, atol=1e-6)


def drive(tracker: Tracker, said: F32, draw: np.ndarray, capacity: float = np.nan, unit: float = 1.0) -> F64:
    """Say the same in each bucket of draw float[bucket, v, r]: share below each level, float64[bucket, q], one step ahead."""
    change, level, top = sizes(said.shape[0], unit)
    top[:] = capacity
    below = np.full((len(draw), Q), np.nan)
    held = tracker.hold(said, change, level, top)
    for bucket, came in enumerate(draw):
        below[bucket] = (came[..., None] <= held[:, :, 0]).mean(axis=(0, 1))
        tracker.learn(known(came))
        held = tracker.hold(said, change, level, top)
    return below


@pytest.mark.parametrize(("bias", "stretch"), [(0.0, 0.5), (1.0, 1.0), (-1.0, 1.0), (0.5, 2.0)])
def test_coverage_comes_back_from_a_biased_start(bias: float, stretch: float) -> None:
    """Bands too narrow, too low, too high, too wide by a factor or a sigma: a fleet of 60 is within two points in a hundred buckets."""
    draw = np.random.default_rng(3).normal(20.0, 2.0, (160, 60, N_RESOURCES))
    below = drive(fleet(60), bands(60, 20.0 + 2.0 * bias, 2.0 * stretch), draw)
    start, end = below[:3].mean(axis=0), below[100:].mean(axis=0)
    assert abs((start[HIGH] - start[LOW]) - 0.8) > 0.1 or abs(start[TOP] - 0.975) > 0.02
    assert abs((end[HIGH] - end[LOW]) - 0.8) < 0.02
    assert abs(end[TOP] - 0.975) < 0.01


def test_one_vm_alone_comes_back_too() -> None:
    """Alone its own and the pooled offset are all there is: six hours."""
    draw = np.random.default_rng(4).normal(20.0, 2.0, (600, 1, N_RESOURCES))
    below = drive(fleet(1), bands(1, 20.0, 1.0), draw)
    assert below[:40, HIGH].mean() - below[:40, LOW].mean() < 0.7
    assert abs(below[100:, HIGH].mean() - below[100:, LOW].mean() - 0.8) < 0.04


def test_a_vm_unlike_its_fleet_finds_its_own() -> None:
    v = 40
    rng = np.random.default_rng(5)
    draw = rng.normal(20.0, 2.0, (900, v, N_RESOURCES))
    draw[:, 0] = rng.normal(20.0, 4.0, (900, N_RESOURCES))
    tracker = fleet(v)
    drive(tracker, bands(v, 20.0, 2.0), draw)
    said = tracker.hold(bands(v, 20.0, 2.0), *sizes(v))
    wide = said[..., HIGH] - said[..., LOW]
    assert wide[0].mean() > 1.5 * wide[1:].mean()


def test_a_running_peak_does_not_fall_from_step_to_step() -> None:
    """What comes in a step is what the offsets answer to, so it is scored as it is said: raised to the step before."""
    said = bands(6, 20.0, 2.0).copy()
    said[:, :, 5:] -= 3.0
    falls, runs = Tracker(), Tracker(running=True)
    for tracker in (falls, runs):
        tracker.rearrange(np.full(6, -1))
    assert (np.diff(falls.hold(said, *sizes(6)), axis=2) < 0).any()
    held = runs.hold(said, *sizes(6))
    assert (np.diff(held, axis=2) >= 0).all() and (np.diff(held, axis=-1) >= 0).all()
    runs.learn(known(np.full((6, N_RESOURCES), 19.0)))  # below the raised median, above the one that was given
    np.testing.assert_array_equal(runs.explain(0), held[0])
    for _ in range(8):
        runs.hold(said, *sizes(6))
        runs.learn(known(np.full((6, N_RESOURCES), 19.0)))
    assert (runs._pooled[:, 0, 6, LEVELS.index(0.5)] < 0).all()


def test_a_restart_forgets_offsets_and_what_was_said() -> None:
    tracker = fleet(12)
    drive(tracker, bands(12, 20.0, 1.0), np.full((30, 12, N_RESOURCES), 30.0))
    assert tracker._own.any() and tracker._pooled.any()
    tracker.restart()
    tracker.learn(known(np.full((12, N_RESOURCES), 30.0)))
    assert not tracker._own.any() and not tracker._pooled.any()
    np.testing.assert_array_equal(tracker.hold(bands(12, 20.0, 1.0), *sizes(12)), bands(12, 20.0, 1.0))


def test_a_slower_fleet_moves_in_smaller_steps() -> None:
    quick, slow = fleet(60), Tracker(gain=2.0)
    slow.rearrange(np.full(60, -1))
    for tracker in (quick, slow):
        drive(tracker, bands(60, 20.0, 1.0), np.full((1, 60, N_RESOURCES), 30.0))
    moved = quick._pooled[:, 0, 0] / slow._pooled[:, 0, 0]
    np.testing.assert_allclose(moved, min(POOLED_GAIN, 1.0 + 60 / 8.0) / 2.0, rtol=1e-5)


def test_idle_at_zero_does_not_drift() -> None:
    """All bands are zero and so is the demand: every level is as right as it can be, for as long as it lasts."""
    tracker = fleet(12)
    drive(tracker, bands(12, 0.0, 0.0), np.zeros((300, 12, N_RESOURCES)))
    assert not tracker._own.any()
    assert not tracker._pooled.any()
    assert not tracker.hold(bands(12, 0.0, 0.0), *sizes(12)).any()


def test_mostly_idle_keeps_its_upper_levels() -> None:
    """92 % of the readings are zero and tie with the levels up to 90 %: those above still learn how high the rest goes."""
    rng = np.random.default_rng(6)
    draw = np.where(rng.random((400, 60, N_RESOURCES)) < 0.92, 0.0, rng.uniform(5.0, 10.0, (400, 60, N_RESOURCES)))
    said = np.broadcast_to(np.where(np.array(LEVELS) < 0.92, 0.0, 7.5), (60, N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)
    below = drive(fleet(60), said, draw, unit=5.0)
    assert below[:3, TOP].mean() < 0.966
    assert abs(below[200:, TOP].mean() - 0.975) < 0.006  # from 0.015


def test_bands_stay_between_zero_and_capacity_and_in_order() -> None:
    tracker = fleet(30)
    rng = np.random.default_rng(8)
    drive(tracker, bands(30, 20.0, 1.0), rng.normal(30.0, 20.0, (80, 30, N_RESOURCES)), capacity=24.0)
    unit, level, top = sizes(30)
    top[:15] = 24.0
    held = tracker.hold(bands(30, 20.0, 1.0), unit, level, top)
    assert (np.diff(held, axis=-1) >= 0).all()
    assert held.min() >= 0.0
    assert held[:15].max() <= 24.0
    assert held[15:].max() > 24.0
    low = tracker.hold(bands(30, 0.5, 1.0), unit, level, top)
    assert low.min() == 0.0


def test_offsets_end_at_the_limit() -> None:
    """Demand far outside for ever: offsets stop at LIMIT spreads, own and pooled."""
    tracker = fleet(9)
    drive(tracker, bands(9, 20.0, 1.0), np.full((600, 9, N_RESOURCES), 1e6))
    assert np.abs(tracker._own).max() <= LIMIT
    assert tracker._pooled[:, 0].max() == pytest.approx(LIMIT)
    held = tracker.hold(bands(9, 20.0, 1.0), *sizes(9))
    spread = 1.2816 + 0.1
    assert held.max() <= 20.0 + 2.3263 + 2.0 * LIMIT * spread + 1e-3


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e20, 3e38])
def test_floats_at_their_ends(size: float) -> None:
    tracker = fleet(10)
    said = bands(10, 20.0, 1.0)
    said[0] = size
    draw = np.random.default_rng(9).normal(20.0, 1.0, (60, 10, N_RESOURCES))
    draw[:, 0] = size
    draw[30:, 1] = np.inf  # no reading
    drive(tracker, said, draw)
    held = tracker.hold(said, *sizes(10))
    assert np.isfinite(held).all()
    assert np.isfinite(tracker._own).all()
    assert (np.diff(held, axis=-1) >= 0).all()


def test_the_silent_stay_silent_and_teach_nothing() -> None:
    tracker = fleet(10)
    said = bands(10, 20.0, 1.0)
    said[0] = np.nan
    drive(tracker, said, np.full((30, 10, N_RESOURCES), 25.0))
    held = tracker.hold(said, *sizes(10))
    assert np.isnan(held[0]).all()
    assert np.isfinite(held[1:]).all()
    assert not tracker._own[0].any()
    before = tracker._own.copy()
    tracker.learn(np.full((10, N_RESOURCES, HORIZON_STEPS), np.nan))
    np.testing.assert_array_equal(tracker._own, before)


def test_restless_vms_have_offsets_of_their_own() -> None:
    """Thirds of the fleet by their usual change: only the restless third is told that its bands are too low."""
    v = 30
    unit, level, top = sizes(v)
    unit *= np.linspace(0.1, 5.0, v)[:, None]
    tracker = fleet(v)
    tracker.hold(bands(v, 20.0, 1.0), unit, level, top)
    came = np.full((v, N_RESOURCES), np.nan)
    came[20:] = 40.0
    tracker.learn(known(came))
    assert not tracker._pooled[:, :2].any()
    assert (tracker._pooled[:, 2, 0] > 0).all()


def rising(bucket: int) -> F32:
    """Step h says the bucket h later, in bands of one: that is the demand's own law."""
    return np.maximum(bands(1, 0.0, 0.3) + np.arange(bucket, bucket + HORIZON_STEPS, dtype=np.float32)[:, None] + 5.0, 0.0)


@pytest.mark.parametrize("gaps", [(), (5,), (3, 4, 5, 6), tuple(range(4, 18))])
def test_pauses_keep_what_was_said_beside_what_came(gaps: tuple[int, ...]) -> None:
    """What comes is the median; one bucket of misalignment would be three sigmas, the same side each time."""
    tracker = fleet(1)
    for bucket in range(40):
        if bucket:
            tracker.learn(np.full((1, N_RESOURCES, HORIZON_STEPS), bucket - 1 + 5.0))
        if bucket in gaps:
            tracker.pause()
        else:
            tracker.hold(rising(bucket), *sizes(1))
    assert tracker._own[..., HIGH].max() < 0 < tracker._own[..., LOW].min()  # every band closes in on the median
    assert np.abs(tracker._own[..., LEVELS.index(0.5)]).max() < 2.1 * STEP


def test_a_withdrawn_issue_never_was() -> None:
    once, twice = fleet(1), fleet(1)
    twice.withdraw()  # nothing to take back yet
    for bucket in range(30):
        for tracker, says in ((once, (0.0,)), (twice, (70.0, 30.0, 0.0))):
            if bucket:
                tracker.learn(np.full((1, N_RESOURCES, HORIZON_STEPS), float(bucket)))
            for n, off in enumerate(says):
                if n:
                    tracker.withdraw()
                tracker.hold(rising(bucket) + np.float32(off), *sizes(1))
    np.testing.assert_array_equal(once._own, twice._own)
    np.testing.assert_array_equal(once._pooled, twice._pooled)


def test_rows_follow_the_fleet() -> None:
    """VM 1 of three goes, one comes: the others' offsets and what they were told go along; the new one starts from the fleet's."""
    rng = np.random.default_rng(10)
    tracker = fleet(3)
    drive(tracker, bands(3, 20.0, 1.0), rng.normal(22.0, 3.0, (20, 3, N_RESOURCES)))
    own, told = tracker._own.copy(), tracker._said.rows.reshape(-1, 3, N_RESOURCES, Q).copy()
    tracker.rearrange(np.array([2, 0, -1]))
    np.testing.assert_array_equal(tracker._own, np.concatenate([own[[2, 0]], np.zeros_like(own[:1])]))
    moved = tracker._said.rows.reshape(-1, 3, N_RESOURCES, Q)
    np.testing.assert_array_equal(moved[:, :2], told[:, [2, 0]])
    assert np.isnan(moved[:, 2]).all()
    tracker.learn(np.full((3, N_RESOURCES, HORIZON_STEPS), 22.0))
    assert not tracker._own[2].any()  # it was told nothing yet
    held = tracker.hold(bands(3, 20.0, 1.0), *sizes(3))
    assert (held[2, :, 0, HIGH] > bands(1, 20.0, 1.0)[0, :, 0, HIGH]).all()
    tracker.rearrange(np.zeros(0, dtype=np.int64))
    tracker.learn(np.zeros((0, N_RESOURCES, HORIZON_STEPS)))
    assert tracker.hold(bands(0, 20.0, 1.0), *sizes(0)).shape == (0, N_RESOURCES, HORIZON_STEPS, Q)


def test_the_same_calls_give_the_same_bytes() -> None:
    draw = np.random.default_rng(12).normal(20.0, 3.0, (30, 20, N_RESOURCES))
    made = [fleet(20), fleet(20)]
    for tracker in made:
        drive(tracker, bands(20, 20.0, 1.0), draw)
    assert made[0]._own.tobytes() == made[1]._own.tobytes()
    assert made[0]._pooled.tobytes() == made[1]._pooled.tobytes()


def test_state_is_what_the_docstring_says() -> None:
    tracker = fleet(2)
    tracker.hold(bands(2, 20.0, 1.0), *sizes(2))
    series = 2 * N_RESOURCES
    assert tracker._said.rows.nbytes // series == 2808
    assert tracker._own.nbytes // series == 108
    assert tracker._classes.nbytes // series == 12


def test_a_tenth_of_the_pace_is_a_tenth_of_the_way_for_the_own_offset_alone() -> None:
    """One bucket: the fleet's offsets move as ever."""
    moved = []
    for pace in (1.0, 0.1):
        tracker = fleet(1, pace)
        tracker.hold(np.sort(np.random.default_rng(4).gamma(2.0, 9.0, (1, N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)), *_SIZES)
        tracker.learn(known(np.full((1, N_RESOURCES), 1e4)))
        moved.append((tracker._own.copy(), tracker._pooled.copy()))
    assert (moved[0][0][:, :, 0] > 0).all()
    np.testing.assert_allclose(moved[1][0], 0.1 * moved[0][0], rtol=1e-5)
    np.testing.assert_array_equal(moved[1][1], moved[0][1])


_SIZES: Final = (np.ones((1, N_RESOURCES)), np.full((1, N_RESOURCES), 9.0), np.full((1, N_RESOURCES), np.nan))
