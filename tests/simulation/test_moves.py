"""VMs move, hosts sleep and wake, end to end: production cores of coordinator, gateway and agents over simulated hosts.

Four hosts of three VMs that idle through the morning and surge at noon, as on every day of their history. A placement of a few lines packs
them by the forecast's peak; what is under test is everything behind it: order, waves, execution, power. Then the same under faults.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from placed_moves import placed
from written_demand import past_of, written_vm

from bench.world import Settings, Weather, World
from coordinator.executing import ExecutionPolicy
from coordinator.forecast.engine import ForecastOptions
from coordinator.migration_plan import OVER, Patience, Phase, Status, WaveLimits
from coordinator.model import N_RESOURCES, HistoryBlock
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.planning.order_moves import MovePolicy
from coordinator.planning.sleep import Power, PowerPolicy
from shared.config import CycleConfig, GuardConfig
from shared.model import Allocation, HostCapacity, Mode, Policy
from shared.plan import StepKind
from shared.units import BUCKET_S, CPU, DISK, GIB, MBIT, MEMORY, NET_RX, NET_TX, NS_PER_S
from shared.workload import VmWorkload, WorkloadFile

NOON_S = 1_795_262_400
START_S = NOON_S - 2 * 3600
HOURS = 3.0
BUCKETS = 4 * 12
HOSTS, VMS = 4, 3
CORES = 8_000
IDLE, SURGE = 400, 2_400  # 12 VMs idle on one host; at noon they need four


def vm(number: int) -> VmWorkload:
    before = (NOON_S - START_S) // BUCKET_S
    return written_vm(
        f"vm-{number:02}",
        [IDLE] * before + [SURGE] * (BUCKETS - before),
        GIB // 2,
        disk=100_000,
        net=MBIT,
        policy=Policy(client=f"client-{number % 3}", cpu_floor_millicores=500),
        memory_max_bytes=2 * GIB,
        initial=Allocation(vcpus=4, memory_bytes=GIB),
        seed=100 + number,
        noise_permille=50,
    )


def files() -> list[WorkloadFile]:
    capacity = HostCapacity(
        cpu_millicores=CORES,
        memory_bytes=64 * GIB,
        net_bits_per_s=100_000 * MBIT,
        cpu_commit_millicores=20 * CORES,
        memory_commit_bytes=60 * GIB,
        net_commit_bits_per_s=100_000 * MBIT,
    )
    vms = [vm(number) for number in range(HOSTS * VMS)]
    return [
        WorkloadFile(host=f"host-{h}", start_s=START_S, buckets=BUCKETS, seed=h, capacity=capacity, vms=tuple(vms[h * VMS : (h + 1) * VMS]))
        for h in range(HOSTS)
    ]


def history() -> HistoryBlock:
    buckets, count = 7 * 288, HOSTS * VMS
    starts_s = START_S - BUCKET_S * np.arange(buckets, 0, -1)
    busy = ((starts_s % 86_400) // 3600 >= 12) & ((starts_s % 86_400) // 3600 < 14)
    noise = 1 + 0.02 * np.random.default_rng(3).standard_normal((count, buckets))
    mean = np.empty((count, N_RESOURCES, buckets), dtype=np.float32)
    mean[:, CPU] = np.where(busy, SURGE, IDLE) * noise
    mean[:, MEMORY] = GIB // 2
    mean[:, DISK], mean[:, NET_RX], mean[:, NET_TX] = 200_000, MBIT, MBIT
    return past_of([vm(number) for number in range(count)], START_S - BUCKET_S, mean, peak=1.05)


def packed(request: PlacementRequest) -> Placed:
    """Empty the least loaded host where its VMs fit elsewhere at 80 % by the hour's peak; else relieve hosts that will be over 90 %."""
    rows = {vm_id: i for i, vm_id in enumerate(request.forecast.vm_ids)}
    peak = {vm_id: float(request.forecast.mean[i, CPU].max()) for vm_id, i in rows.items()}
    hosts = {h.host_id: {v.domain.vm_id for v in h.vms} for h in request.hosts if h.alive}
    load = {host_id: sum(peak.get(vm_id, 0.0) for vm_id in vms) for host_id, vms in hosts.items()}

    def allowed(vm_id: str, host_id: str) -> bool:
        return vm_id not in request.cooling and (vm_id, host_id) not in request.forbidden and ("", host_id) not in request.forbidden

    def fitting(vm_id: str, source: str, most: float, *, used: bool) -> str | None:
        fits = [h for h in hosts if h != source and (hosts[h] or not used) and load[h] + peak[vm_id] <= most * CORES and allowed(vm_id, h)]
        return min(fits, key=lambda h: (not hosts[h], -load[h] if used else load[h], h), default=None)

    moves: list[tuple[str, str, str]] = []

    def move(vm_id: str, source: str, target: str) -> None:
        load[source] -= peak[vm_id]
        load[target] += peak[vm_id]
        moves.append((vm_id, source, target))

    for source in sorted(hosts, key=lambda h: (-load[h], h)):
        for vm_id in sorted(hosts[source] & peak.keys()):
            if load[source] > 0.9 * CORES and (target := fitting(vm_id, source, 0.9, used=False)) is not None:
                move(vm_id, source, target)
    if not moves:
        for source in sorted((h for h in hosts if hosts[h]), key=lambda h: (load[h], h)):
            before, count = dict(load), len(moves)
            for vm_id in sorted(hosts[source] & peak.keys()):
                if (target := fitting(vm_id, source, 0.8, used=True)) is not None:
                    move(vm_id, source, target)
            if len(moves) - count == len(hosts[source]):
                break
            load, moves = before, moves[:count]
    return placed(request, *moves)


POLICY = ExecutionPolicy(
    execute=True,
    always=True,
    moves=MovePolicy(settle_s=60.0),
    limits=WaveLimits(vms=4, hosts=4, racks=9, clients=9, client_share=0.5),
    patience=Patience(cooldown_s=900.0, failed_s=1800.0),
    power=PowerPolicy(spare_hosts=0, empty_s=120.0, margin_s=120.0, lead_s=180.0, repaid_s=600.0),
)


def world(policy: ExecutionPolicy = POLICY, weather: Weather | None = None, seed: int = 1, **changes: object) -> World:
    return built(policy, weather, seed, **changes).run()


def built(policy: ExecutionPolicy = POLICY, weather: Weather | None = None, seed: int = 1, **changes: object) -> World:
    settings = Settings(
        seed=seed,
        hours=HOURS,
        modes=lambda _: Mode.PREDICTIVE,
        sample_period_s=15.0,
        step_s=15,
        cycle=CycleConfig(bucket_grace_s=30, aggregates=False, place_every_cycles=1),
        guard=GuardConfig(reading_max_age_s=70),
        forecast=ForecastOptions(boosting=False),
        history=[history()],
        weather=weather or Weather(),
        execution=policy,
        placer=packed,
        movable=True,
        switchable=True,
        wake_s=120.0,
    )
    return World(files(), replace(settings, **changes))  # type: ignore[arg-type]


def on_hosts(made: World) -> dict[str, str]:
    return {vm_id: agent.host_id for agent in made.agents for vm_id in agent.vm_ids()}


@pytest.fixture(scope="module")
def calm() -> World:
    return world()


@pytest.mark.slow
def test_vms_are_packed_emptied_hosts_sleep_and_wake_before_the_ramp(calm: World) -> None:
    assert calm.violations == []
    assert len(calm.moves.slept) >= 2, "the morning needs one host or two"
    ramp_ns = (NOON_S - BUCKET_S // 2) * NS_PER_S
    woken = [at_ns for at_ns, _ in calm.moves.woken]
    assert len(woken) >= 2
    assert max(woken) < ramp_ns, "every host that the surge needs is awake before it"
    assert on_hosts(calm).keys() == {f"vm-{n:02}" for n in range(HOSTS * VMS)}
    # the surge is spread again: at its height no host has more than fits
    assert max(Counter(on_hosts(calm).values()).values()) * SURGE <= 1.2 * CORES
    assert sum(calm.moves.asleep_s.values()) > 1800, "sleep that is worth the trouble"


@pytest.mark.slow
def test_every_move_was_planned_verified_and_ended(calm: World) -> None:
    plans = calm.coordinator.migrations.values()
    assert {plan.status for plan in plans} <= {Status.DONE, Status.ABORTED}
    moves = [move for plan in plans for move in plan.moves]
    assert all(move.phase in OVER for move in moves)
    done = Counter((move.vm_id, move.source, move.target) for move in moves if move.phase is Phase.DONE)
    assert done == Counter((vm_id, source, target) for _, vm_id, source, target in calm.moves.moved)
    states = {o.state for o in calm.coordinator.outcomes.values() if o.step.kind is StepKind.MIGRATE}
    assert states == {"verified"}


@pytest.mark.slow
def test_waves_keep_to_their_limits(calm: World) -> None:
    outcomes = [outcome for outcome in calm.coordinator.outcomes.values() if outcome.step.kind is StepKind.MIGRATE]
    home = {move.step_id: move.source for plan in calm.coordinator.migrations.values() for move in plan.moves}
    for begun in outcomes:
        flying = [each for each in outcomes if each.started_ns <= begun.started_ns < each.finished_ns]
        assert len(flying) <= POLICY.limits.vms
        assert max(Counter(home[each.step.id] for each in flying).values()) <= POLICY.limits.per_source
        assert max(Counter(each.step.target for each in flying).values()) <= POLICY.limits.per_target


@pytest.mark.slow
def test_the_same_seed_gives_the_same_history(calm: World) -> None:
    assert world().digest == calm.digest  # a whole run: sleep and wake are in it


@pytest.mark.slow
def test_advice_moves_nothing() -> None:
    advised = world(replace(POLICY, execute=False), hours=1.0)
    found = advised.coordinator.cycle.placed
    assert found is not None and found.plan.moves
    assert (advised.moves.moved, advised.moves.slept, advised.coordinator.migrations) == ([], [], {})
    assert advised.violations == []


@pytest.mark.slow
def test_a_plan_waits_for_its_operator() -> None:
    waiting = world(replace(POLICY, always=False), hours=1.0)
    assert waiting.moves.moved == []
    assert {plan.status for plan in waiting.coordinator.migrations.values()} <= {Status.PROPOSED, Status.ABORTED}
    assert waiting.violations == []


@pytest.mark.slow
def test_two_failures_stop_a_plan_and_failed_pairs_are_not_tried_again() -> None:
    failing = world(weather=Weather(migration_failures=1.0), hours=1.0)
    assert failing.violations == []
    assert failing.moves.moved == []
    stopped = [plan for plan in failing.coordinator.migrations.values() if plan.status is Status.STOPPED]
    assert stopped
    for plan in stopped:
        begun = [move for move in plan.moves if move.phase is Phase.FAILED]
        assert 2 <= len(begun) <= POLICY.limits.vms
    tried = Counter((m.vm_id, m.target) for p in failing.coordinator.migrations.values() for m in p.moves if m.phase is Phase.FAILED)
    assert max(tried.values()) <= 2  # half an hour later once more, within the hour
    assert on_hosts(failing) == {spec.vm_id: file.host for file in files() for spec in file.vms}


@pytest.mark.slow
def test_a_wake_that_fails_is_remembered_and_the_vms_live_on() -> None:
    dark = world(weather=Weather(broken_wakes=1))
    assert dark.violations == []
    states = [host.state for host in dark.coordinator.cycle.execution.book.hosts.values()]
    assert dark.counts["power_wake"] > dark.counts.get("woken", 0)
    assert Power.FAILED in states or dark.counts["power_wake"] >= 2
    assert on_hosts(dark).keys() == {f"vm-{n:02}" for n in range(HOSTS * VMS)}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["coordinator", "agent", "both"])
def test_a_process_that_dies_while_vms_are_on_their_way(victim: str) -> None:
    """What is in flight is read back after the restart, not repeated, and its plan ends."""
    # a move takes a minute and a half, and nobody is away for so long that the plan does without it
    made = built(weather=Weather(down_s=(20.0, 120.0)), move_bits_per_s=100_000_000, hours=0.7)
    killed: list[str] = []

    def strike() -> None:
        flying = [move for plan in made.coordinator.migrations.values() for move in plan.moves if move.phase is Phase.SENT]
        if not flying or made.counts.get("migration_begun", 0) < 2:
            made.after(1.0, strike)
            return
        source = next(agent for agent in made.agents if agent.host_id == flying[0].source)
        killed.append(flying[0].step_id)
        if victim != "coordinator":
            source.kill()
        if victim != "agent":
            made.coordinator.kill()

    made.after(1.0, strike)
    made.run()
    assert killed
    assert made.violations == []
    assert made.moves.begun[killed[0]] == 1
    (first, *_) = sorted(made.coordinator.migrations.values(), key=lambda plan: plan.created_ns)
    assert first.status is Status.DONE
    assert [move.phase for move in first.moves] == [Phase.DONE] * len(first.moves)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1])
def test_moves_survive_faults(seed: int) -> None:
    """Agents and the coordinator die mid-wave, migrations fail, networks part: nothing is begun twice, no VM is lost, plans end."""
    weather = Weather(
        delay_s=(0.001, 0.3),
        duplicate=0.05,
        reset=0.01,
        partitions=1,
        partition_s=(60.0, 400.0),
        agent_kills=2,
        agent_stops=1,
        coordinator_kills=4,
        down_s=(10.0, 200.0),
        migration_failures=0.15,
    )
    stormy = world(weather=weather, seed=seed, move_bits_per_s=100_000_000)  # a move takes a minute and a half: faults hit it
    assert stormy.violations == []
    assert stormy.counts["coordinator_kill"] >= 2
    assert stormy.moves.begun
    assert set(stormy.moves.begun.values()) == {1}
    assert sorted(on_hosts(stormy)) == sorted(f"vm-{n:02}" for n in range(HOSTS * VMS))
    assert sum(len(agent.vm_ids()) for agent in stormy.agents) == HOSTS * VMS
