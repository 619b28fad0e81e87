"""What lies around a placement's search: from VM records and forecast to the problem, and from an assignment to a checked plan in words.

The fleet is made from a seed: hosts of 16 cores with ten VMs each, daily waves at random phases, twenty clients and a hundred
applications with rules over them, two pools. In place of a search stands an assignment that empties a fifth of the hosts. Times are
processor seconds, so that a shared machine can be compared; the wall time of the whole stands beside them. The baseline is what the issue
allows for the whole way from forecast to moves, 5 s for 10,000 VMs on 1,000 hosts: what is around the search must leave most of that to it.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np

from bench.report import Figure, finish, options
from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.model import LEVELS, N_RESOURCES, ForecastBlock, HostState, VmState
from coordinator.placement.explain.why_not import why
from coordinator.placement.fleet.build import build_fleet
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.fleet.site_file import parse_site
from coordinator.placement.problem import I32, Problem, Solution
from coordinator.placement.solve import place_fleet
from shared.model import Allocation, Capabilities, Domain, HostCapacity, Mode, Policy, Priority
from shared.units import CPU, GIB, HORIZON_STEPS, MEMORY, NET_RX, NET_TX

VMS_PER_HOST = 10
BUILD_S, PLAN_S = 0.5, 1.5  # bars for 10,000 VMs
SITE = """
[[pools]]
name = "a"
hosts = ["h0*"]
sleep = true
[[pools]]
name = "b"
sleep = true
price_per_hour = 0.1
[[hosts]]
hosts = ["h*[02468]"]
domains = { rack = "even" }
[[hosts]]
hosts = ["h*[13579]"]
domains = { rack = "odd" }
[[rules]]
name = "apart"
kind = "apart"
each = "application"
limit = 40
[[rules]]
name = "pinned"
kind = "pinned"
clients = ["c1*"]
hosts = ["h*"]
[[rules]]
name = "spread"
kind = "spread"
each = "client"
level = "rack"
limit = 9999
[moving]
bytes_per_s = 1.25e9
"""


def make_request(hosts: int, seed: int) -> PlacementRequest:
    """A fleet and its forecast; sums of applications and clients whose members half move together."""
    random = np.random.default_rng(seed)
    count = hosts * VMS_PER_HOST
    ids = tuple(f"v{i:06}" for i in range(count))
    wave = 1.0 + 0.5 * np.sin((np.arange(HORIZON_STEPS) + random.uniform(0, 12, (count, 1))) / HORIZON_STEPS * 2 * np.pi)
    mean = np.zeros((count, N_RESOURCES, HORIZON_STEPS), np.float32)
    mean[:, CPU] = random.uniform(200, 1000, (count, 1)) * wave
    mean[:, MEMORY], mean[:, NET_RX], mean[:, NET_TX] = GIB, 1e6, 1e6
    nothing = np.zeros((count, N_RESOURCES, HORIZON_STEPS, 0), np.float32)
    flags = np.zeros((count, N_RESOURCES))
    forecast = ForecastBlock(
        issued_s=1_700_000_100, vm_ids=ids, mean=mean, stddev=0.1 * mean, quantiles=nothing, peak_quantiles=nothing,
        model=flags.astype(np.int8), models=("given",), reason=flags.astype(np.int8), coverage=flags.astype(np.float32),
        levels=LEVELS,
    )  # fmt: skip
    states = tuple(make_host(h, ids[h * VMS_PER_HOST : (h + 1) * VMS_PER_HOST]) for h in range(hosts))
    together = tuple(
        make_sums(names, mean, np.arange(count) // VMS_PER_HOST % len(names))
        for names in (tuple(f"a{i}" for i in range(100)), tuple(f"c{i}" for i in range(20)))
    )
    return PlacementRequest(hosts=states, forecast=forecast, site=parse_site(SITE), together=together, deadline_s=60.0)


def make_host(h: int, vm_ids: tuple[str, ...]) -> HostState:
    """16 cores, 64 GiB; its VMs have 2 GiB each and are one client's and one application's."""
    unknown = np.full(N_RESOURCES, np.nan)
    capacity = HostCapacity(
        cpu_millicores=16_000, memory_bytes=64 * GIB, net_bits_per_s=10**10, cpu_commit_millicores=64_000, memory_commit_bytes=60 * GIB,
        net_commit_bits_per_s=10**10,
    )  # fmt: skip
    policy = Policy(priority=Priority(h % 4), client=f"c{h % 20}", application=f"a{h % 100}")
    vms = tuple(
        VmState(
            domain=Domain(
                vm_id=v, name=v, vcpus_max=4, memory_max_bytes=8 * GIB, policy=policy, capabilities=Capabilities(migrate=None)
            ),
            host_id=f"h{h:04}",
            allocation=Allocation(vcpus=4, cpu_quota_millicores=1000, memory_bytes=2 * GIB),
            demand_now=unknown,
            peak_now=unknown,
            censored_now=unknown,
            working_set_bytes=float("nan"),
        )
        for v in vm_ids
    )  # fmt: skip
    return HostState(host_id=f"h{h:04}", capacity=capacity, mode=Mode.PREDICTIVE, alive=True, vms=vms)


def make_sums(names: tuple[str, ...], mean: np.ndarray, of: np.ndarray) -> GroupSums:
    """Sums whose variance lies half way between independent members and members that always move together."""
    alone, joint = (np.zeros((len(names), *mean.shape[1:])) for _ in range(2))
    np.add.at(alone, of, (0.1 * mean) ** 2)
    np.add.at(joint, of, 0.1 * mean)
    stddev = np.sqrt((alone + joint**2) / 2.0).astype(np.float32)
    return GroupSums(names=names, mean=stddev, stddev=stddev)


def empty_a_fifth(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """No search: every fifth host's VMs, dealt out over the others."""
    hosts = len(problem.host_ids)
    kept = np.flatnonzero(np.arange(hosts) % 5)
    moved = np.flatnonzero(problem.home % 5 == 0)
    place = problem.home.copy()
    place[moved] = kept[np.arange(len(moved)) % len(kept)]
    return Solution(place=place, cost=0.0, bound=-np.inf, engine="dealt")


def measure(hosts: int) -> list[Figure]:
    """Medians of three runs."""
    request = make_request(hosts, 1)
    built, whole, wall, told = [], [], [], []
    moves = 0
    for _ in range(3):
        begun = time.process_time()
        build_fleet(request)
        built.append(time.process_time() - begun)
        begun, clock = time.process_time(), time.perf_counter()
        placed = place_fleet(replace(request), empty_a_fifth)
        whole.append(time.process_time() - begun)
        wall.append(time.perf_counter() - clock)
        begun = time.process_time()
        why(placed, placed.plan.moves[0].vm_id if placed.plan.moves else request.forecast.vm_ids[0])
        told.append(time.process_time() - begun)
        moves = len(placed.plan.moves)
    scale = hosts / 1000
    name = f"{hosts * VMS_PER_HOST} VMs, {hosts} hosts"
    build, plan = float(np.median(built)), float(np.median(whole))
    return [
        Figure(row=3, name=f"{name}: problem", value=build, unit="s CPU", bar=f"<= {BUILD_S * scale:g}", holds=build <= BUILD_S * scale),
        Figure(
            row=3, name=f"{name}: all but the search", value=plan, unit="s CPU", bar=f"<= {PLAN_S * scale:g}", holds=plan <= PLAN_S * scale
        ),
        Figure(row=3, name=f"{name}: the same", value=float(np.median(wall)), unit="s wall"),
        Figure(row=3, name=f"{name}: moves in the plan, checked", value=moves, unit="moves", bar=">= 1", holds=moves >= 1),
        Figure(name=f"{name}: why one VM is where it is", value=float(np.median(told)), unit="s CPU"),
    ]


def main() -> None:
    arguments = options(__doc__ or "").parse_args()
    load = os.getloadavg()[0]
    print(f"baseline: 5 s from forecast to moves for 10,000 VMs (issue 5, row 3); one process; load of the machine {load:.1f}\n")
    figures = [figure for hosts in ((300,) if arguments.quick else (300, 1000, 5000)) for figure in measure(hosts)]
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
