"""The inner loop of the scores (numba): one issued step of all VMs against what came, summed by VM, model and step ahead.

Per pair: pinball loss of the forecast and of Naive at every level, absolute error of the median, bias of the mean, demand, whether the
actual lay inside the central 80 and 95 % and above the upper bound. A pair counts when actual, forecast and Naive are all known, so that
every sum is over the same pairs. About 60 ns a pair. Pure; sums are added in row order, so the same input gives the same bytes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64

MEASURES: Final = 9
PINBALL, NAIVE, ABSOLUTE, BIAS, DEMAND, INSIDE_80, INSIDE_95, ABOVE, COUNT = range(MEASURES)


@njit(cache=True)
def score_step(  # noqa: PLR0917  (numba: no keyword-only)
    quantiles: F32,
    mean: F32,
    last: F32,
    spread: F32,
    z: F64,
    actual: F64,
    levels: F64,
    bounds: NDArray[np.int64],
    row: NDArray[np.int64],
    model: NDArray[np.int16],
    by_vm: F64,
    by_model: F64,
    by_resource: F64,
) -> None:
    """Add the pairs of one step of one issue.

    quantiles float32[n, r, q]; mean, last, spread float32[n, r]: Naive's quantiles are last + z [q] * spread; actual float64[rows, r];
    levels [q]; bounds = positions in levels of .1, .9, .025, .975, .5; row [n] of each issued VM in `actual` and
    `by_vm`, -1 = gone; model int16[n, r] row of `by_model`. Sums: by_vm [rows, r, m], by_model [k, r, m], by_resource [r, m].
    """
    count = levels.shape[0]
    found = np.zeros(MEASURES)
    for i in range(quantiles.shape[0]):
        at = row[i]
        if at < 0:
            continue
        for r in range(quantiles.shape[1]):
            y = actual[at, r]
            ours = 0.0
            naive = 0.0
            for q in range(count):
                miss = y - quantiles[i, r, q]
                ours += max(levels[q] * miss, (levels[q] - 1.0) * miss)
                miss = y - max(last[i, r] + z[q] * spread[i, r], 0.0)
                naive += max(levels[q] * miss, (levels[q] - 1.0) * miss)
            if not np.isfinite(ours + naive):
                continue
            found[PINBALL] = ours / count
            found[NAIVE] = naive / count
            found[ABSOLUTE] = abs(y - quantiles[i, r, bounds[4]])
            found[BIAS] = mean[i, r] - y
            found[DEMAND] = y
            found[INSIDE_80] = 1.0 if quantiles[i, r, bounds[0]] <= y <= quantiles[i, r, bounds[1]] else 0.0
            found[INSIDE_95] = 1.0 if quantiles[i, r, bounds[2]] <= y <= quantiles[i, r, bounds[3]] else 0.0
            found[ABOVE] = 1.0 if y > quantiles[i, r, bounds[3]] else 0.0
            found[COUNT] = 1.0
            for m in range(MEASURES):
                by_vm[at, r, m] += found[m]
                by_model[model[i, r], r, m] += found[m]
                by_resource[r, m] += found[m]
