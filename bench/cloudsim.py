"""CloudSim 3.0.3's PlanetLab experiment, simulated independently: a day of traces and a policy in; energy, moves and SLA figures out.

Equal to CloudSim to the digits it prints (tests/unit/test_cloudsim.py holds the table). The policy is one of CloudSim's own, or any planner
that decides at each tick what moves where: then only that decision is replaced, the first placement and every other rule stay.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench import cloudsim_hosts as hosts
from bench import cloudsim_policies as policies
from bench.cloudsim_hosts import F64, I32, World

NPA: Final = "NPA"
DVFS: Final = "DVFS"
MOVING: Final = {"THR": policies.THR, "IQR": policies.IQR, "MAD": policies.MAD, "LR": policies.LR}
POLICIES: Final = (NPA, DVFS, *MOVING)
WH: Final = 3.6e6  # joules in a kWh


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the experiment reports of a day. Shares are fractions, not percent."""

    energy_kwh: float
    moves: int
    slatah: float  # of the hosts' active time, less granted than wanted (arriving VMs are granted a tenth)
    pdm: float  # of all MIPS wanted, lost to VMs that were leaving
    violation: float  # of all MIPS wanted, not granted
    overloaded: float  # of the hosts' active time, VMs that run there want more than there is: SLATAH without the rule on arrivals
    shutdowns: int  # times that a host went idle; a host that never was in use counts once
    left: int  # VMs that were never removed
    seconds: float

    @property
    def esv(self) -> float:
        return self.energy_kwh * self.slatah * self.pdm


class Planner(Protocol):
    """Decides at a tick. `past` is MIPS wanted [v, k] at all k ticks so far, newest last; `host_of` [v] with NOWHERE for VMs removed."""

    def __call__(self, past: F64, host_of: I32) -> tuple[I32, I32]:
        """VMs and where each of them goes, no VM twice."""
        ...


def simulate(samples: NDArray[np.integer], policy: str | Planner) -> Measures:
    """A day of traces [v, 288], percent of each VM's MIPS in the order of the VMs' ids. Raises ValueError on an unknown policy."""
    began = time.process_time()
    world = hosts.new_world(samples)
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r}: allowed {', '.join(POLICIES)}, or a planner")
        if policy in MOVING:
            policies.place_by_power(world, policies.SAFETY[policies.THR] if policy == "THR" else policies.UNKNOWN_YET)
        else:
            policies.place_first_fit(world)
    else:
        policies.place_by_power(world, policies.UNKNOWN_YET)
    run_day(world, policy)
    sums = world.sums
    return Measures(
        energy_kwh=float(sums[hosts.ENERGY_J] / WH),
        moves=int(sums[hosts.MOVES]),
        slatah=float(sums[hosts.VIOLATED_S] / sums[hosts.ACTIVE_S]) if sums[hosts.ACTIVE_S] > 0 else 0.0,
        pdm=float(sums[hosts.LOST_MOVING] / sums[hosts.WANTED]) if sums[hosts.WANTED] > 0 else 0.0,
        violation=float(1.0 - sums[hosts.GRANTED] / sums[hosts.WANTED]) if sums[hosts.WANTED] > 0 else 0.0,
        overloaded=float(sums[hosts.OVERLOADED_S] / sums[hosts.ACTIVE_S]) if sums[hosts.ACTIVE_S] > 0 else 0.0,
        shutdowns=int(sums[hosts.SHUTDOWNS] + ((world.host_entry[:, 3] == 0) & (world.host_entry[:, 5] > 0)).sum()),
        left=int((world.host_of != hosts.NOWHERE).sum()),
        seconds=time.process_time() - began,
    )


def run_day(world: World, policy: str | Planner) -> None:
    """All ticks of a placed world."""
    t, always_on = hosts.FIRST_TICK_S, policy == NPA
    seen = np.empty((len(world.mips), hosts.TICKS))
    for k in range(hosts.TICKS):
        t += hosts.STEP_S
        hosts.tick(world, t, always_on)
        if not isinstance(policy, str):
            seen[:, k] = world.wanted
            moves = policy(seen[:, : k + 1], world.host_of.copy())
        elif policy in MOVING:
            moves = policies.optimise(world, MOVING[policy])
        else:
            continue
        hosts.carry_out(world, t, *moves, always_on)


def days(folder: Path) -> dict[str, NDArray[np.int64]]:
    """Every day in the folder: file stem -> traces [v, 288], VMs in plain byte order of their names."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        names = sorted((name for name in table.column_names if name != "t"), key=lambda name: name.encode())
        order = np.argsort(table.column("t").to_numpy(), kind="stable")
        found[path.stem] = np.stack([table.column(name).to_numpy()[order] for name in names]).astype(np.int64)
    return found
