"""The independent simulator of CloudSim's PlanetLab experiment: its rules by hand on a few VMs, and the printed digits on real days."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench import cloudsim_hosts as hosts
from bench import cloudsim_policies as policies
from bench.cloudsim import DVFS, NPA, days, simulate
from bench.cloudsim_hosts import SAMPLES, World, new_world
from bench.planetlab import PRINTED, printed

DATA = Path(os.environ.get("TIDEGATE_DATA", "../shared/data")) / "planetlab"
TICK_S = 300.1

SHUTDOWNS = {NPA: 455, DVFS: 455, "THR": 5885, "LR": 5053}


def world_of(*levels: int) -> World:
    """VMs that want the same share all day; the four sizes in turn, as many of each as there are VMs over four."""
    return new_world(np.repeat(np.array(levels)[:, None], SAMPLES, axis=1))


def put(world: World, v: int, h: int) -> None:
    world.host_of[v] = h
    hosts.append(world, h, v)


@pytest.mark.skipif(not DATA.is_dir(), reason="the PlanetLab traces are not here")
@pytest.mark.parametrize("policy", [NPA, DVFS, "THR", "LR"])
def test_a_day_equals_cloudsim_to_the_printed_digits(policy: str) -> None:
    """The other days and policies: python -m bench.planetlab."""
    name = "planetlab_20110303"
    found = days(DATA)
    if name not in found:
        pytest.skip(f"{name} is not here")
    told = simulate(found[name], policy)
    assert printed(told) == PRINTED["20110303"][policy]
    assert told.shutdowns == SHUTDOWNS[policy]


def test_vms_come_in_four_sizes_and_the_last_sample_is_repeated() -> None:
    world = world_of(10, 20, 30, 40, 50)
    assert world.mips.tolist() == [2500, 2500, 2000, 2000, 1000]
    assert world.ram.tolist() == [870, 870, 1740, 1740, 1740]
    assert world.use.shape == (5, 289) and world.use[3, 288] == 0.4


def test_demand_is_a_straight_line_between_samples() -> None:
    samples = np.zeros((1, SAMPLES), np.int64)
    samples[0, 1], samples[0, 2] = 20, 40
    world = new_world(samples)
    hosts.want(world, 450.0)
    assert world.wanted[0] == pytest.approx(0.3 * 2500)
    hosts.want(world, 300.0)
    assert world.wanted[0] == 0.2 * 2500


def test_a_host_that_is_short_scales_everybody_down_to_whole_mips() -> None:
    world = world_of(90, 90, 90)  # 2250, 1800, 900 MIPS on a G4 of 2 x 1860: the first is capped at one core
    for v in range(3):
        put(world, v, 0)
    hosts.want(world, TICK_S)
    hosts.update_host(world, 0, TICK_S)
    scale = 3720 / (1860 + 1800 + 900)
    assert world.granted.tolist() == [np.floor(1860 * scale), np.floor(1800 * scale), np.floor(900 * scale)]
    assert world.load[0] == world.granted.sum()
    assert world.host_entry[0, 2] == 2250 + 1800 + 900  # history keeps what was wanted, not the cap
    assert world.host_entry[0, 4] == 1.0


def test_a_leaving_vm_loses_a_tenth_and_an_arriving_one_all_but_a_tenth() -> None:
    world = world_of(40, 40)  # 1000 and 800 MIPS
    put(world, 0, 1)
    put(world, 1, 3)
    hosts.tick(world, TICK_S, False)
    hosts.carry_out(world, TICK_S, np.array([0], np.int32), np.array([3], np.int32), False)
    took = 870 / hosts.MB_PER_S
    assert world.host_of.tolist() == [3, 3] and world.sums[hosts.MOVES] == 1
    hosts.update_all(world, TICK_S + 300, False)
    assert world.sums[hosts.LOST_MOVING] == pytest.approx(0.1 * 1000 * took)
    assert world.sums[hosts.VIOLATED_S] == pytest.approx(took)  # the target alone; 1000 x 0.9 / 0.9 is 1000 again
    assert world.sums[hosts.OVERLOADED_S] == 0.0
    # host 1 is in use until its VM has left, host 3 all the time
    assert world.sums[hosts.ACTIVE_S] == pytest.approx(took + 300)


def test_energy_is_the_mean_of_the_powers_at_both_ends_and_nothing_after_an_idle_step() -> None:
    world = world_of(40)  # 1000 of 5320 MIPS
    put(world, 0, 1)
    hosts.tick(world, TICK_S, False)
    assert world.sums[hosts.ENERGY_J] == 0.0
    hosts.update_all(world, TICK_S + 300, False)
    share = 1000 / 5320
    assert world.sums[hosts.ENERGY_J] == pytest.approx(300 * (97 + 4 * (share * 10 - 1)))
    assert hosts.power(world.watts[1], share) == pytest.approx(97 + 4 * (share * 10 - 1))
    assert hosts.power(world.watts[0], 0.0) == 86.0 and hosts.power(world.watts[0], 1.0) == 117.0


def test_a_vm_is_removed_for_good_after_two_zeros_in_a_row_unless_it_moves() -> None:
    samples = np.full((2, SAMPLES), 20)
    samples[0, 1] = 0  # one zero: at the tick it wants a little already
    samples[1, 2:4] = 0
    world = new_world(samples)
    put(world, 0, 1)
    put(world, 1, 3)
    hosts.tick(world, TICK_S, False)
    assert world.host_of.tolist() == [1, 3]
    world.moving[1] = True
    hosts.tick(world, TICK_S + 300, False)
    assert world.host_of.tolist() == [1, 3]
    world.moving[1] = False
    hosts.update_all(world, TICK_S + 300, False)
    assert world.host_of.tolist() == [1, hosts.NOWHERE] and world.count[3] == 0


def test_empty_hosts_draw_power_only_where_nothing_is_managed() -> None:
    idle = np.zeros((1, SAMPLES), np.int64)
    assert simulate(idle, "DVFS").energy_kwh == 0.0
    assert simulate(idle, "NPA").energy_kwh == pytest.approx(400 * (117 + 135) * 86_100 / 3.6e6, rel=1e-5)


def test_first_placement_fills_hosts_in_order_or_spreads_by_power() -> None:
    together, spread = world_of(*[10] * 8), world_of(*[10] * 8)
    policies.place_first_fit(together)
    policies.place_by_power(spread, 0.7)
    # 2500 and 2000 MIPS need a core of a G5; 2 x 1740 and 613 MB leave no room for 613 MB more
    assert together.host_of.tolist() == [1, 1, 3, 3, 0, 0, 0, 2]
    assert len(set(spread.host_of.tolist())) == 8 and (spread.host_of[:4] % 2 == 1).all()


def test_overload_tests_of_the_four_policies() -> None:
    past = np.zeros(30)
    assert policies.overloaded(policies.THR, 0.81, 1.0, past) and not policies.overloaded(policies.THR, 0.8, 1.0, past)
    # no history: 0.7 for the others
    for policy in (policies.IQR, policies.MAD, policies.LR):
        assert policies.overloaded(policy, 0.71, 1.0, past) and not policies.overloaded(policy, 0.7, 1.0, past)
    past[:12] = np.arange(12, 0, -1) / 20
    # quartiles of 1..12: places round(3.25) and round(9.75), values .15 and .5
    assert policies.overloaded(policies.IQR, 1 - 1.5 * 0.35 + 1e-9, 1.0, past)
    assert not policies.overloaded(policies.IQR, 1 - 1.5 * 0.35 - 1e-9, 1.0, past)
    # median .325, absolute deviations .025 to .275 twice each: their median is .15
    assert policies.overloaded(policies.MAD, 1 - 2.5 * 0.15 + 1e-9, 1.0, past)
    assert not policies.overloaded(policies.MAD, 1 - 2.5 * 0.15 - 1e-9, 1.0, past)


def test_the_regression_looks_one_step_ahead_of_the_last_ten_ticks() -> None:
    past = np.zeros(30)
    past[:10] = np.arange(10, 0, -1) * 0.075  # rises by .075 a tick: .825 next, x 1.2 = .99
    assert not policies.overloaded(policies.LR, 5.0, 1.0, past)
    assert policies.overloaded(policies.LR, 0.0, 1.0, past * 1.02)
    past[9] = 0.0  # nine values are too few
    assert policies.overloaded(policies.LR, 0.71, 1.0, past)


def test_overloaded_hosts_give_up_the_smallest_vm_and_the_world_is_restored() -> None:
    world = world_of(90, 90, 90, 90)
    for v in range(4):
        put(world, v, 1)
    hosts.tick(world, TICK_S, False)
    vms, targets = policies.optimise(world, policies.THR)
    # 613 MB leaves first (450 MIPS: 4950 - 450 is still over .8 of 5320), then 870 MB; the wanted-most is placed first
    assert vms.tolist() == [0, 3]
    assert world.listed[1, :4].tolist() == [0, 1, 2, 3] and world.count[1] == 4 and (targets != 1).all()


def test_the_least_loaded_host_is_emptied_wholly_or_not_at_all() -> None:
    world = world_of(20, 20, 20, 20)
    put(world, 0, 1)
    put(world, 1, 3)
    put(world, 2, 3)
    put(world, 3, 5)
    hosts.tick(world, TICK_S, False)
    vms, targets = policies.optimise(world, policies.THR)
    moves = dict(zip(vms.tolist(), targets.tolist(), strict=True))
    assert moves[3] in (1, 3)  # the lightest host goes first; hosts asleep are no targets
    assert {1, 2} <= moves.keys() or not {1, 2} & moves.keys()


def test_unknown_policies_and_bad_traces_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="policy 'FIRST'"):
        simulate(np.zeros((1, SAMPLES), np.int64), "FIRST")
    with pytest.raises(ValueError, match="288"):
        new_world(np.zeros((1, 12), np.int64))
    with pytest.raises(ValueError, match="0 to 100"):
        new_world(np.full((1, SAMPLES), 101))
