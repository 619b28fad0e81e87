"""How much of a missed headroom bar could anybody close, and how much of it is the draw of VMs: bounds beside bench/headroom.py's figures.

- *Both tuned*: ours with the one margin that hindsight gives the rules, so that calibration is out of the comparison.
- *Linear rule in hindsight*: the best sum of all look-back rules with weights >= 0, fitted by pinball loss to the very hours that are
  scored and then tuned to the target. No deployable rule of that family can be cheaper but by chance.
- *Draws of VMs*: the ratio over fleets drawn from these VMs with replacement, rules tuned anew on each (bootstrap: Efron 1979). A bar
  inside that interval is neither met nor missed by anything but the draw.

Pure; the draws follow a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from coordinator.model import F64

SMOOTH: Final = (0.02, 0.005, 0.001)  # of the mean demand in own scales: how wide the pinball loss's corner is rounded, ever less
CENTRAL: Final = (0.05, 0.95)


@dataclass(frozen=True)
class Spread:
    """Where the middle nine tenths of a figure lie over draws of VMs."""

    low: float
    high: float


def linear_rule(demand: F64, rules: F64, scale: F64, level: float) -> F64:
    """Allocation float64[n] of the best sum of rules [n, k] with weights >= 0 at `level`, fitted to demand [n] itself.

    Errors count in units of `scale` [n] > 0.
    """
    seen, came = rules / scale[:, None], demand / scale
    size = max(float(came.mean()), 1e-12)

    def loss(weights: F64, corner: float) -> tuple[float, F64]:
        error = came - seen @ weights
        short = np.clip(error / corner, -500.0, 500.0)
        value = float((level * error + corner * np.logaddexp(0.0, -short)).mean())
        return value, -((level - 1.0 / (1.0 + np.exp(short)))[:, None] * seen).mean(axis=0)

    weights = np.full(rules.shape[1], 1.0 / rules.shape[1])
    for share in SMOOTH:
        found = minimize(loss, weights, args=(share * size,), jac=True, bounds=[(0.0, None)] * len(weights), method="L-BFGS-B")
        weights = found.x
    allocation: F64 = rules @ weights
    return allocation


def over_draws(vms: int, draws: int, figure: Callable[[NDArray[np.int64]], float], seed: int = 0) -> Spread:
    """`figure` of `draws` fleets of `vms` columns, drawn with replacement; those without a figure (NaN, infinite) are left out."""
    rng = np.random.default_rng(seed)
    found = np.array([figure(rng.integers(0, vms, vms)) for _ in range(draws)])
    found = found[np.isfinite(found)]
    if not len(found):
        return Spread(float("nan"), float("nan"))
    low, high = np.quantile(found, CENTRAL)
    return Spread(float(low), float(high))
