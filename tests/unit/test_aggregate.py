"""Sums of VMs: calibrated as sums, following who belongs to whom, sound on any data, the same bytes for the same calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from forecast_blocks import forecast_block
from hard_series import hard_series

from coordinator.forecast.aggregate import AggregateForecast, Aggregator, GroupKey, Membership, sums_of
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from shared.units import BUCKET_S, CPU, HORIZON_STEPS

T0 = 1_700_006_400 // 86_400 * 86_400
Z = np.array([-1.96, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449, 1.96, 2.3263])
LOW, HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
Groups = dict[str, Membership]


def names(v: int) -> tuple[str, ...]:
    return tuple(f"vm{i}" for i in range(v))


def bucket(start_s: int, mean: np.ndarray, vm_ids: tuple[str, ...]) -> BucketBlock:
    values = mean.astype(np.float64)
    return BucketBlock.unlimited(start_s, vm_ids, values)


def said(start_s: int, mean: np.ndarray, stddev: np.ndarray, vm_ids: tuple[str, ...], reason: int = NoForecast.OK) -> ForecastBlock:
    """What VMs' forecasts made on bucket `start_s` look like: flat [v, r] means and deviations."""
    curve = np.repeat(mean[..., None], HORIZON_STEPS, axis=-1).astype(np.float32)
    spread = np.repeat(stddev[..., None], HORIZON_STEPS, axis=-1).astype(np.float32)
    quantiles = np.maximum(curve[..., None] + Z * spread[..., None], 0.0).astype(np.float32)
    codes = np.where(np.isnan(mean), NoForecast.ALL_UNKNOWN, reason).astype(np.int8)
    unknown = np.full(mean.shape, np.nan, dtype=np.float32)
    return forecast_block(
        vm_ids, start_s + BUCKET_S, curve, stddev=spread, quantiles=quantiles, models=("naive",), reason=codes, coverage=unknown
    )


def history(mean: np.ndarray, capacity: float = np.nan) -> HistoryBlock:
    values = mean.astype(np.float32)
    return HistoryBlock(
        vm_ids=names(len(mean)),
        end_s=T0,
        mean=values,
        peak=values,
        censored=np.zeros_like(values),
        capacity=np.full(mean.shape[:2], capacity, dtype=np.float32),
    )


def noise(v: int, b: int, together: float, seed: int = 3) -> np.ndarray:
    """[v, r, b] around 1000 with deviation 100, of which the share `together` of the variance is the same for all VMs."""
    rng = np.random.default_rng(seed)
    shared, own = rng.standard_normal((1, N_RESOURCES, b)), rng.standard_normal((v, N_RESOURCES, b))
    return np.asarray(1000.0 + 100.0 * (np.sqrt(together) * shared + np.sqrt(1.0 - together) * own))


def one_client(v: int) -> Groups:
    return {vm_id: Membership(client="acme", host=f"h{i % 3}") for i, vm_id in enumerate(names(v))}


def run(data: np.ndarray, groups: Groups, loaded: int) -> list[AggregateForecast]:
    """Load, then advance with honest VM forecasts (1000 ± 100)."""
    v = len(data)
    aggregator = Aggregator()
    aggregator.load(history(data[..., :loaded]), groups)
    level, spread = np.full((v, N_RESOURCES), 1000.0), np.full((v, N_RESOURCES), 100.0)
    out = []
    for i in range(data.shape[2] - loaded):
        at = T0 + (i + 1) * BUCKET_S
        out.append(aggregator.advance(bucket(at, data[..., loaded + i], names(v)), said(at, level, spread, names(v)), groups))
    return out


def width(block: AggregateForecast, key: GroupKey, step: int = 0) -> float:
    quantiles = block.quantiles[block.groups.index(key)]
    return float((quantiles[:, step, HIGH] - quantiles[:, step, LOW]).mean())


def assert_sound(block: AggregateForecast, capacity: float = np.inf) -> None:
    known = block.reason != NoForecast.ALL_UNKNOWN
    for quantiles in (block.quantiles, block.peak_quantiles):
        assert quantiles.shape == (len(block.groups), N_RESOURCES, HORIZON_STEPS, len(LEVELS))
        assert np.isfinite(quantiles[known]).all()
        assert np.isnan(quantiles[~known]).all()
        assert (np.diff(quantiles[known], axis=-1) >= 0).all()
        assert (quantiles[known] >= 0).all()
        assert (quantiles[known] <= np.float32(capacity)).all()
    assert (np.diff(block.peak_quantiles[known], axis=1) >= 0).all()
    assert (block.peak_quantiles[known] >= block.quantiles[known]).all()
    assert np.isfinite(block.mean[known]).all()
    assert np.isfinite(block.stddev[known]).all()


CLIENT, FLEET = GroupKey("client", "acme"), GroupKey("fleet", "")


def test_idle_members_do_not_hide_what_a_burster_s_own_quantiles_know() -> None:
    """The same mean and deviation: where members' bands are narrow but for a long upper tail, so becomes the sum's."""
    data, groups = noise(8, 90, 0.0), one_client(8)
    aggregator, other = Aggregator(), Aggregator()
    for each in (aggregator, other):
        each.load(history(data[..., :89]), groups)
    at = T0 + BUCKET_S
    level, spread = np.full((8, N_RESOURCES), 1000.0), np.full((8, N_RESOURCES), 100.0)
    plain = said(at, level, spread, names(8))
    bursty = replace(plain, quantiles=(plain.mean[..., None] + 100.0 * np.array([-0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 2, 8])).astype("f4"))
    normal = aggregator.advance(bucket(at, data[..., 89], names(8)), plain, groups)
    found = other.advance(bucket(at, data[..., 89], names(8)), bursty, groups)
    assert_sound(found)
    assert width(found, CLIENT) < 0.8 * width(normal, CLIENT)
    row = found.groups.index(CLIENT)
    assert (found.quantiles[row, :, 0, -1] > normal.quantiles[row, :, 0, -1]).all()
    np.testing.assert_array_equal(found.mean, normal.mean)  # coherent with the members' means


@pytest.mark.parametrize("together", [0.0, 0.5])
def test_the_band_of_a_sum_holds_what_it_promises_whether_or_not_its_members_move_together(together: float) -> None:
    data = noise(20, 180, together)
    blocks = run(data, one_client(20), 80)
    at = blocks[0].groups.index(CLIENT)
    for step in (0, 5, 11):
        actual = data[..., 80 + 1 + step :].sum(axis=0).T  # of blocks[i]: the bucket step + 1 later
        bands = np.stack([block.quantiles[at, :, step] for block in blocks[: len(actual)]])
        inside = (actual >= bands[..., LOW]) & (actual <= bands[..., HIGH])
        assert 0.72 < inside.mean() < 0.88


def test_correlated_members_widen_the_sum_and_independent_ones_do_not_add_up() -> None:
    groups = one_client(20)
    alone, together = run(noise(20, 90, 0.0), groups, 80)[-1], run(noise(20, 90, 0.8), groups, 80)[-1]
    summed_quantiles = 20 * 100.0 * 2 * 1.2816
    assert width(alone, CLIENT) < 0.4 * summed_quantiles  # root of 20 over 20 is .22
    assert 2.0 * width(alone, CLIENT) < width(together, CLIENT) < 1.3 * summed_quantiles
    assert together.mean[together.groups.index(CLIENT), CPU, 0] == pytest.approx(20_000, rel=0.2)


def test_a_group_that_just_appeared_is_usable_and_knows_how_far_members_move_together() -> None:
    data = noise(20, 81, 0.8)
    groups = one_client(20)
    aggregator = Aggregator()
    aggregator.load(history(data[..., :80]), groups)
    groups |= {vm_id: Membership(client="new", host="h9") for vm_id in names(10)}
    at = T0 + BUCKET_S
    flat = np.full((20, N_RESOURCES), 1000.0)
    block = aggregator.advance(bucket(at, data[..., 80], names(20)), said(at, flat, flat / 10, names(20)), groups)
    row = block.groups.index(GroupKey("client", "new"))
    assert block.members[row] == 10
    assert (block.reason[row] == NoForecast.OK).all()
    assert width(block, GroupKey("client", "new")) > 1.4 * np.sqrt(10) * 100 * 2 * 1.2816
    assert_sound(block)


def test_old_members_demand_leaves_with_them_and_the_new_ones_counts_at_once() -> None:
    data = noise(6, 120, 0.0)
    data[0] *= 50.0  # one giant
    before = {vm_id: Membership(host="left" if i < 3 else "right") for i, vm_id in enumerate(names(6))}
    after = before | {"vm0": Membership(host="right")}
    aggregator = Aggregator()
    aggregator.load(history(data[..., :100]), before)
    level = np.full((6, N_RESOURCES), 1000.0)
    level[0] *= 50.0
    for i in range(20):
        at = T0 + (i + 1) * BUCKET_S
        forecast = said(at, level, level / 10, names(6))
        block = aggregator.advance(bucket(at, data[..., 100 + i], names(6)), forecast, before if i < 10 else after)
        left, right = (block.groups.index(GroupKey("host", name)) for name in ("left", "right"))
        small, big = (right, left) if i < 10 else (left, right)
        assert block.quantiles[small, :, :, -1].max() < 6_000
        assert block.mean[big, :, 0] == pytest.approx(50_000, rel=0.35)
        assert_sound(block)
    moved = sums_of(block, "host")
    assert moved.names == ("left", "right")
    assert moved.mean.shape == moved.stddev.shape == (2, N_RESOURCES, HORIZON_STEPS)
    with pytest.raises(ValueError, match="kind 'rack'"):
        sums_of(block, "rack")


def test_vms_and_groups_come_and_go_within_bounds() -> None:
    aggregator = Aggregator()
    aggregator.load(history(np.zeros((0, N_RESOURCES, 0))), {})
    rng = np.random.default_rng(0)
    rows, groups_kept = [], []
    for i in range(0, 396, 6):  # five of six buckets never come
        vm_ids = tuple(f"vm{i // 12 + k}" for k in range(4))
        groups = {vm_id: Membership(app=f"a{i // 12}", client="c") for vm_id in vm_ids[:3]}
        level = np.full((4, N_RESOURCES), 100.0)
        at = T0 + i * BUCKET_S
        block = aggregator.advance(bucket(at, rng.normal(100, 5, level.shape), vm_ids), said(at, level, level / 20, vm_ids), groups)
        assert_sound(block)
        assert dict(zip(block.groups, block.members, strict=True)) == {
            GroupKey("app", f"a{i // 12}"): 3,
            GroupKey("client", "c"): 3,
            FLEET: 4,
        }
        rows.append(len(aggregator._store.row))
        groups_kept.append(len(aggregator._ledger))
    assert max(rows) <= 4 + 294 // 12 + 1
    assert max(groups_kept) <= 3 + 294 // 12 + 1


@pytest.mark.parametrize("loaded", [0, 1, 5, 40])
def test_no_series_is_too_hard(loaded: int) -> None:
    data = hard_series(loaded + 30)
    data[6] = -50.0
    vm_ids = names(9)
    groups = {vm_id: Membership(app=f"a{i}", client="all") for i, vm_id in enumerate(vm_ids)}
    aggregator = Aggregator()
    aggregator.load(history(data[..., :loaded]), groups)
    capacity = {vm_id: [1e13] * N_RESOURCES for vm_id in vm_ids}
    for i in range(30):
        now = data[..., loaded + i]
        at = T0 + (i + 1) * BUCKET_S
        level = np.maximum(now, 0.0)
        block = aggregator.advance(bucket(at, now, vm_ids), said(at, level, level * (i % 2), vm_ids), groups, capacity)
        assert_sound(block, 9e13)
    assert (block.reason[block.groups.index(GroupKey("app", "a8"))] == NoForecast.ALL_UNKNOWN).all()
    assert block.known[block.groups.index(GroupKey("client", "all")), CPU] == pytest.approx((~np.isnan(now[:, CPU])).sum() / 9)


def test_reasons_follow_the_members_that_matter() -> None:
    groups = {"vm0": Membership(app="a"), "vm1": Membership(app="a")}
    aggregator = Aggregator()
    level = np.array([[900.0] * N_RESOURCES, [100.0] * N_RESOURCES])
    forecast = said(T0, level, level / 10, names(2), NoForecast.COLD_START)
    block = aggregator.advance(bucket(T0, level, names(2)), forecast, groups)
    assert (block.reason == NoForecast.COLD_START).all()
    forecast.reason[0] = NoForecast.OK  # nine tenths of the demand has a model now
    block = aggregator.advance(bucket(T0, level, names(2)), forecast, groups)  # the same bucket again
    assert (block.reason == NoForecast.OK).all()


def test_a_sum_that_was_wrong_for_hours_says_so_and_recovers() -> None:
    aggregator = Aggregator()
    level = np.full((3, N_RESOURCES), 1000.0)
    rng = np.random.default_rng(1)
    reasons = []
    for i in range(260):
        at = T0 + i * BUCKET_S
        # for four hours each error is a quarter larger than the one before: no correction keeps up
        now = level + rng.normal(0, 10, level.shape) + (40.0 * 1.25 ** (i - 60) if 60 <= i < 110 else 0.0)
        reasons.append(aggregator.advance(bucket(at, now, names(3)), said(at, level, level / 100, names(3)), {}).reason[0, CPU])
    assert NoForecast.OUT_OF_CALIBRATION not in reasons[24:60]
    assert NoForecast.OUT_OF_CALIBRATION in reasons[60:140]
    assert reasons[-1] == NoForecast.OK


def test_missing_buckets_are_no_demand_and_older_ones_are_refused() -> None:
    data = noise(4, 60, 0.0)
    groups = one_client(4)
    aggregator = Aggregator()
    aggregator.load(history(data[..., :50]), groups)
    flat = np.full((4, N_RESOURCES), 1000.0)
    late = T0 + 7 * BUCKET_S
    block = aggregator.advance(bucket(late, data[..., 50], names(4)), said(late, flat, flat / 10, names(4)), groups)
    assert_sound(block)
    assert block.issued_s == late + BUCKET_S
    assert block.mean[block.groups.index(CLIENT), :, 0] == pytest.approx(4000, rel=0.2)
    with pytest.raises(ValueError, match="older ones are closed"):
        aggregator.advance(bucket(T0, flat, names(4)), said(T0, flat, flat, names(4)), groups)
    with pytest.raises(ValueError, match="issued_s"):
        aggregator.advance(bucket(late + BUCKET_S, flat, names(4)), said(late, flat, flat, names(4)), groups)
    with pytest.raises(ValueError, match="multiple of 300"):
        aggregator.advance(bucket(late + 1, flat, names(4)), said(late + 1, flat, flat, names(4)), groups)


def test_the_same_calls_give_the_same_bytes() -> None:
    data = noise(9, 80, 0.3)
    first, second = (run(data, one_client(9), 60)[-1] for _ in range(2))
    assert first.quantiles.tobytes() == second.quantiles.tobytes()
    assert first.peak_quantiles.tobytes() == second.peak_quantiles.tobytes()
