"""The barest problem there is: VMs at home, their load, and hosts' capacity. Warm-ups, packers and benches say only what is more to theirs.

Pure. Invariant: whatever nobody named changes no cost and forbids nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coordinator.placement.problem import CURVE_POINTS, F64, I32, Bool, Problem


def bare_problem(home: I32, mean: F64, capacity: F64, cpu: Bool, **more: Any) -> Problem:
    """A problem of home [v], mean [v, c], capacity [h, c] and cpu [c], with `more` of its fields in place of what they are here.

    Here CPU cells are five minutes each and soft, the others the hour and hard; nobody is fixed, varies, peaks together or is barred from
    anywhere; an awake host costs nothing, with VMs or without; a VM is worth 1 a minute, and 1 left nowhere. Raises as Problem does.
    """
    v, h, c = len(mean), len(capacity), len(cpu)
    fields: dict[str, Any] = {
        "vm_ids": tuple(f"v{i}" for i in range(v)),
        "host_ids": tuple(f"h{i}" for i in range(h)),
        "fixed": np.zeros(v, bool),
        "why_fixed": ("",) * v,
        "kind": np.zeros(v, np.int32),
        "variance": np.zeros((v, c)),
        "weight": np.ones(v),
        "move_cost": np.zeros(v),
        "unplaced_cost": np.ones(v),
        "group": np.full(v, -1, np.int32),
        "rho": np.zeros(0),
        "hard": ~cpu,
        "z": np.zeros(c),
        "minutes": np.where(cpu, 5.0, 60.0),
        "curve": np.zeros((h, CURVE_POINTS)),
        "empty_cost": np.zeros(h),
        "wake_cost": np.zeros(h),
        "closed": np.zeros(h, bool),
        "kind_cost": np.zeros((1, h)),
        "domain": np.arange(h, dtype=np.int32)[None],
    }
    return Problem(home=home, mean=mean, capacity=capacity, cpu=cpu, **(fields | more))
