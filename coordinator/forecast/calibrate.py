"""Point forecasts to calibrated quantiles: pooled, signed, scaled conformal residuals with an online correction per VM.

1. *Scale.* What size an error will have is itself forecast, for each side (too low, too high) apart, as a log-linear function of local
   features (own recent errors, spread of the last hours, disagreement of the members, level), learned online per resource by ridge
   regression on the errors that arrived, starting from a sensible prior.
2. *Shape.* Residuals divided by their scale are pooled over the VMs of a resource, per horizon; their quantiles (blended with a Laplace
   prior while the pool is small) are the bands. Ten residuals of one VM cannot give a 97.5 % quantile, the fleet's can; of a large fleet
   a changing sample of VMs is pooled, as 12,288 residuals tell the 99 % quantile well enough.
3. *Own correction.* Each VM, horizon and level tracks its own offset, moved up by a miss and down by a hit in the ratio of the level
   (adaptive conformal inference: Gibbs and Candes 2021), so that a VM unlike its fleet finds its own coverage.

The same class serves the bucket mean and the running peak. Pure; no randomness. Axes: v VM, r resource, h step, g part of the horizon,
q level, p feature. State: 4.6 KiB per series, float32, and 2.8 MiB of pool whatever the fleet. Invariants: quantiles are finite where the
point is, monotone in q, inside [0, capacity].
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_SIZES, GROUPS, TRIANGLE, said_at
from coordinator.forecast.kernels import calibration
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

Q: Final = len(LEVELS)
TAU: Final = np.array(LEVELS)
BAND: Final = (LEVELS.index(0.1), LEVELS.index(0.9))  # the central 80 %
POOL: Final = 96  # pooled origins, one in POOL_STRIDE: 32 hours, so that every part of the day is in the pool
POOLED_VMS: Final = 128  # of one origin; a larger fleet sends other VMs each time
POOL_STRIDE: Final = 4  # neighbours say nearly the same; coprime to the replay's stride, so that every step gets its share
RESHAPE_EVERY: Final = 6  # buckets between two looks at the pool, two steps of the horizon in each
POOL_PRIOR: Final = 40.0  # the Laplace prior counts like this many independent residuals
# Scales are geometric means of |error|; for a Laplace law of mean |error| 1 that is exp(-Euler's gamma) = .5615
PRIOR_SHAPE: Final = -np.sign(TAU - 0.5) * np.log(2.0 * np.minimum(TAU, 1.0 - TAU)) / 0.5615
TRACK: Final = 0.02  # step of the own correction in units of the scale
TRACK_LIMIT: Final = 4.0
TRACK_LEAK: Final = 0.9998
FORGET: Final = 0.995  # of the scale regression, per bucket: half-life 11 hours
RIDGE: Final = 800.0
ERROR_DECAY: Final = 0.97  # own error memory: half-life 23 buckets
COVERAGE_DECAY: Final = 0.986
_AGES: Final = np.arange(1, HORIZON_STEPS + 1)
_UP: Final = (TAU * TRACK * (1.0 + np.abs(PRIOR_SHAPE))).astype(np.float32)  # a miss; the outer levels move in larger steps
_DOWN: Final = ((TAU - 1.0) * TRACK * (1.0 + np.abs(PRIOR_SHAPE))).astype(np.float32)
_KEPT: Final = np.cumsum(GROUP_SIZES)  # origins that a part of the horizon needs: up to its last step
_KEPT_STARTS: Final = np.cumsum(_KEPT) - _KEPT


class Laid(NamedTuple):
    """The newest bands of one VM."""

    point: F32  # [r, h]
    bands: F32  # [r, h, q]
    bare: F32  # [r, h, q] the same without the VM's own correction


class Calibrator:
    """Scales, pool and corrections of one target. Call once per bucket `learn`, then `issue` or `pause`."""

    def __init__(self, features: int, prior: tuple[float, ...]) -> None:
        """`features` counts the local features without intercept and own error; `prior` has a coefficient for each with those two."""
        p = features + 2
        self._prior: F64 = np.array(prior)  # intercept, own error, features
        self._normal: F64 = np.zeros((N_RESOURCES, GROUPS, 2, p, p))  # upper triangles
        self._moment: F64 = np.zeros((N_RESOURCES, GROUPS, 2, p))
        self._beta: F64 = np.broadcast_to(self._prior, (N_RESOURCES, GROUPS, 2, p)).copy()
        self._shape: F32 = np.broadcast_to(PRIOR_SHAPE, (N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)
        self._pool: F32 = np.full((N_RESOURCES, HORIZON_STEPS, POOL, POOLED_VMS), np.nan, dtype=np.float32)
        self._errors = _nothing(0, N_RESOURCES, GROUPS, 2)  # decayed sum and weight
        self._offset = _nothing(0, N_RESOURCES, HORIZON_STEPS, Q)
        self._covered = _nothing(0, N_RESOURCES, 2)  # decayed sum and weight
        # what was said, kept until the actuals arrive
        self._points = _unknown(TRIANGLE, 0, N_RESOURCES)  # see combine.said_at
        self._bands = _unknown(TRIANGLE, 0, N_RESOURCES, Q)
        self._features = _unknown(_KEPT.sum(), 0, N_RESOURCES, 2, p - 1)
        self._scales = _unknown(_KEPT.sum(), 0, N_RESOURCES, 2)
        self._units = _unknown(HORIZON_STEPS, 0, N_RESOURCES)
        self._issues = 0
        self._count = 0

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows). The pool is the fleet's: what it knows of VMs that left stays until it is overwritten."""
        for name in ("_errors", "_offset", "_covered"):
            setattr(self, name, take_rows(getattr(self, name), take, 0, 0.0))
        for name in ("_points", "_bands", "_features", "_scales", "_units"):
            setattr(self, name, take_rows(getattr(self, name), take, 1, np.nan))

    def learn(self, actual: F64) -> None:
        """Take the actuals that became known now: float64[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        at = said_at(self._issues)
        spoken = self._issues - _AGES
        group_at = _KEPT_STARTS[GROUP_OF_STEP] + spoken % _KEPT[GROUP_OF_STEP]
        if self._count % POOL_STRIDE == 0:
            self._sample(actual, at, group_at)
        calibration.learn(
            np.ascontiguousarray(actual, dtype=np.float64).reshape(-1, HORIZON_STEPS),
            _by_series(self._points, 1),
            _by_series(self._bands, 1),
            at,
            _by_series(self._features, 1),
            group_at,
            _by_series(self._units, 1),
            spoken % HORIZON_STEPS,
            _by_series(self._offset, 0),
            _UP,
            _DOWN,
            TRACK_LEAK,
            TRACK_LIMIT,
            _by_series(self._errors, 0),
            ERROR_DECAY,
            _by_series(self._covered, 0),
            COVERAGE_DECAY,
            BAND,
            self._normal,
            self._moment,
            self._count,
        )
        self._count += 1
        if self._count % RESHAPE_EVERY == 0:
            self._solve()
        for step in range(self._count % RESHAPE_EVERY, HORIZON_STEPS, RESHAPE_EVERY):
            self._reshape(step)

    def issue(self, point: F64, unit: F64, local: F64, capacity: F64) -> F32:
        """Quantiles float32[v, r, h, q] for point forecasts [v, r, h].

        unit float64[v, r] > 0: the size of a usual change, which errors and features are measured in; local float64[v, r, g, side, p]
        (positive, in the data's unit; side 0 = the actual may be higher, 1 = lower); capacity float64[v, r], NaN = unbounded.
        """
        quantiles = np.empty((*point.shape, Q), dtype=np.float32)
        calibration.issue(
            *(_by_series(np.ascontiguousarray(given, dtype=np.float64), 0) for given in (point, unit, local, capacity)),
            self._shape,
            self._beta,
            _by_series(self._offset, 0),
            _by_series(self._errors, 0),
            _by_series(self._points, 1),
            _by_series(self._bands, 1),
            said_at(self._issues),
            _by_series(self._features, 1),
            _by_series(self._scales, 1),
            _KEPT_STARTS + self._issues % _KEPT,
            _by_series(self._units, 1)[self._issues % HORIZON_STEPS],
            _by_series(quantiles, 0),
        )
        self._issues += 1
        return quantiles

    def pause(self) -> None:
        """A bucket without an issue: keeps later actuals aligned with their origins."""
        self._points[said_at(self._issues)] = np.nan
        self._issues += 1

    def withdraw(self) -> None:
        """Take back the newest issue, because its bucket is issued again."""
        self._issues -= 1
        self._points[said_at(self._issues)] = np.nan

    def coverage(self) -> tuple[F32, F32]:
        """Realised share inside the central 80 % band of late and its evidence in buckets, both float32[v, r]; NaN = not known yet."""
        inside, weight = self._covered[..., 0], self._covered[..., 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight > 0, inside / weight, np.float32(np.nan)), weight.copy()

    def explain(self, row: int, capacity: F64) -> Laid:
        """The newest bands of VM `row`, whose ceilings are float64[r]; NaN where nothing was issued."""
        at = said_at(self._issues - 1)
        scale = self._scales[_KEPT_STARTS + (self._issues - 1) % _KEPT, row][GROUP_OF_STEP].swapaxes(0, 1)  # [r, h, side]
        point = self._points[at, row].T
        bare = point[..., None] + self._shape * np.where(self._shape > 0, scale[..., :1], scale[..., 1:])
        top = np.where(np.isnan(capacity), np.inf, capacity)[:, None, None]
        bare = np.minimum(np.maximum.accumulate(np.maximum(bare, 0.0), axis=-1), top).astype(np.float32)
        return Laid(point, self._bands[at, row].swapaxes(0, 1), bare)

    def _sample(self, actual: F64, at: NDArray[np.int64], group_at: NDArray[np.int64]) -> None:
        """Put the newest scaled residuals of up to POOLED_VMS VMs, evenly spread over the fleet, where the pool's oldest are."""
        number = self._count // POOL_STRIDE
        fleet = len(actual)
        used = min(fleet, POOLED_VMS)
        rows = (np.arange(used) * fleet // max(used, 1) + number) % max(fleet, 1)
        error = np.moveaxis(actual[rows], -1, 0) - self._points[at][:, rows]  # [h, v, r]
        scale = self._scales[group_at][:, rows]
        place = self._pool[:, :, number % POOL]
        place[:] = np.nan
        place[..., :used] = (error / np.where(error >= 0, scale[..., 0], scale[..., 1])).transpose(2, 0, 1)

    def _solve(self) -> None:
        ridge = RIDGE * np.eye(len(self._prior))
        lower = np.tril(self._normal.swapaxes(-1, -2), -1)
        solved = np.linalg.solve(self._normal + lower + ridge, (self._moment + RIDGE * self._prior)[..., None])
        self._beta = np.ascontiguousarray(solved[..., 0])
        self._normal *= FORGET**RESHAPE_EVERY
        self._moment *= FORGET**RESHAPE_EVERY

    def _reshape(self, step: int) -> None:
        """Pooled quantiles of one step of each resource, blended with the prior by the number of independent residuals."""
        for resource in range(N_RESOURCES):
            pool = self._pool[resource, step].ravel()
            pool = pool[~np.isnan(pool)]
            if not len(pool):
                continue
            pool.sort()
            place = TAU * (len(pool) - 1)
            low = place.astype(np.int64)
            high = np.minimum(low + 1, len(pool) - 1)
            empirical = pool[low] + (place - low) * (pool[high] - pool[low])
            independent = len(pool) / max(1.0, (step + 1.0) / POOL_STRIDE)
            trust = independent / (independent + POOL_PRIOR)
            self._shape[resource, step] = trust * empirical + (1.0 - trust) * PRIOR_SHAPE


def _nothing(*shape: int) -> F32:
    return np.zeros(shape, dtype=np.float32)


def _unknown(*shape: int) -> F32:
    return np.full(shape, np.nan, dtype=np.float32)


def _by_series(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """VM and resource, which stand at `axis` and behind it, as one axis."""
    before, (vms, resources, *behind) = array.shape[:axis], array.shape[axis:]
    return array.reshape(*before, vms * resources, *behind)
