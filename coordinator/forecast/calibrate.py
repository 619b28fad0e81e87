"""Point forecasts to calibrated quantiles: pooled, signed, scaled conformal residuals with an online correction per VM.

1. *Scale.* What size an error will have is itself forecast, for each side (too low, too high) apart, as a log-linear function of local
   features (own recent errors, spread of the last hours, disagreement of the members, level), learned online per resource by ridge
   regression on the errors that arrived, starting from a sensible prior.
2. *Shape.* Residuals divided by their scale are pooled over all VMs of a resource, per horizon; their quantiles (blended with a Laplace
   prior while the pool is small) are the bands. Ten residuals of one VM cannot give a 97.5 % quantile, the fleet's can.
3. *Own correction.* Each VM, horizon and level tracks its own offset, moved up by a miss and down by a hit in the ratio of the level
   (adaptive conformal inference: Gibbs and Candes 2021), so that a VM unlike its fleet finds its own coverage.

The same class serves the bucket mean and the running peak. Pure; no randomness. Axes: v VM, r resource, h step, g part of the horizon,
q level, p feature. Invariants: quantiles are finite where the point is, monotone in q, inside [0, capacity].
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_STARTS, GROUPS
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

Q: Final = len(LEVELS)
TAU: Final = np.array(LEVELS)
BAND: Final = (LEVELS.index(0.1), LEVELS.index(0.9))  # the central 80 %
POOL: Final = 96  # pooled origins, one in POOL_STRIDE: 32 hours, so that every part of the day is in the pool
POOL_STRIDE: Final = 4  # neighbours say nearly the same; coprime to the replay's stride, so that every step gets its share
RESHAPE_EVERY: Final = 6  # buckets between two looks at the pool
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
_STEPS: Final = np.arange(HORIZON_STEPS)
_UP: Final = TAU * TRACK * (1.0 + np.abs(PRIOR_SHAPE))  # a miss; the outer levels move in larger steps
_DOWN: Final = (TAU - 1.0) * TRACK * (1.0 + np.abs(PRIOR_SHAPE))
_LEAST: Final = 0.05  # an error below this share of the unit counts as this share: logs need a floor
_CLIP: Final = 3.0  # |log| of a residual or feature beyond this is clipped: one wild reading must not bend the fleet's law


class Calibrator:
    """Scales, pool and corrections of one target. `features` counts the local features without intercept and own error."""

    def __init__(self, features: int, prior: tuple[float, ...]) -> None:
        p = self._p = features + 2
        self._prior: F64 = np.array(prior)  # intercept, own error, features
        self._normal: F64 = np.zeros((N_RESOURCES, GROUPS, 2, p, p))
        self._moment: F64 = np.zeros((N_RESOURCES, GROUPS, 2, p))
        self._beta: F64 = np.broadcast_to(self._prior, (N_RESOURCES, GROUPS, 2, p)).copy()
        self._shape: F64 = np.broadcast_to(PRIOR_SHAPE, (N_RESOURCES, HORIZON_STEPS, Q)).copy()
        self._pool: F32 = np.full((POOL, 0, N_RESOURCES, HORIZON_STEPS), np.nan, dtype=np.float32)
        self._errors: F64 = np.zeros((2, 0, N_RESOURCES, GROUPS))  # decayed sum and weight
        self._offset: F64 = np.zeros((HORIZON_STEPS, 0, N_RESOURCES, Q))
        self._covered: F64 = np.zeros((2, 0, N_RESOURCES))  # decayed sum and weight
        # what was said at the newest twelve origins, kept until the actuals arrive; `_head` is where the next issue goes
        self._points: F64 = np.full((HORIZON_STEPS, 0, N_RESOURCES, HORIZON_STEPS), np.nan)
        self._units: F64 = np.full((HORIZON_STEPS, 0, N_RESOURCES), np.nan)
        self._features: F64 = np.full((HORIZON_STEPS, 0, N_RESOURCES, GROUPS, 2, p), np.nan)
        self._scales: F64 = np.full((HORIZON_STEPS, 0, N_RESOURCES, GROUPS, 2), np.nan)
        self._bands: F32 = np.full((HORIZON_STEPS, 0, N_RESOURCES, HORIZON_STEPS, Q), np.nan, dtype=np.float32)
        self._head = 0
        self._count = 0

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        for name, fill in (("_errors", 0.0), ("_offset", 0.0), ("_covered", 0.0), ("_pool", np.nan), ("_points", np.nan)):
            setattr(self, name, take_rows(getattr(self, name), take, 1, fill))
        for name in ("_units", "_features", "_scales", "_bands"):
            setattr(self, name, take_rows(getattr(self, name), take, 1, np.nan))

    def learn(self, actual: F64) -> None:
        """Take the actuals that became known now: float64[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none.

        Called once per bucket, before `issue`.
        """
        origin = (self._head - 1 - _STEPS) % HORIZON_STEPS
        target = np.moveaxis(actual, -1, 0)  # [h, v, r], as everything below
        error = target - self._points[origin, :, :, _STEPS]
        scale = self._scales[origin, :, :, GROUP_OF_STEP]
        self._correct(target, error, self._bands[origin, :, :, _STEPS])
        self._regress(error, self._units[origin], self._features[origin, :, :, GROUP_OF_STEP])
        self._remember(np.moveaxis(error, 0, -1))
        if self._count % POOL_STRIDE == 0:
            scaled = error / np.where(error >= 0, scale[..., 0], scale[..., 1])
            self._pool[self._count // POOL_STRIDE % POOL] = np.moveaxis(scaled, 0, -1)
        self._count += 1
        if self._count % RESHAPE_EVERY == 0:
            self._solve()
            self._reshape()

    def issue(self, point: F64, unit: F64, local: F64, capacity: F64) -> F32:
        """Quantiles float32[v, r, h, q] for point forecasts [v, r, h].

        unit float64[v, r] > 0: the size of a usual change, which errors and features are measured in; local float64[v, r, g, side, p]
        (positive, in the data's unit; side 0 = the actual may be higher, 1 = lower); capacity float64[v, r], NaN = unbounded.
        """
        own = self._own_error(unit)
        features = np.empty((*local.shape[:-1], self._p))
        features[..., 0] = 1.0
        relative = np.log(np.maximum(np.concatenate([np.repeat(own[..., None, None], 2, axis=-2), local], axis=-1), 1e-30))
        relative -= np.log(unit)[..., None, None, None]
        features[..., 1:] = np.clip(relative, -_CLIP, 2 * _CLIP)
        scale = np.exp(np.clip((features * self._beta).sum(axis=-1), -_CLIP, 2 * _CLIP)) * unit[..., None, None]
        by_step = scale[:, :, GROUP_OF_STEP]  # [v, r, h, side]
        z = self._shape + np.moveaxis(self._offset, 0, 2)
        bands = point[..., None] + z * np.where(z > 0, by_step[..., :1], by_step[..., 1:])
        bands = np.maximum.accumulate(np.maximum(bands, 0.0), axis=-1)
        bands = np.where(np.isnan(capacity)[..., None, None], bands, np.minimum(bands, capacity[..., None, None]))
        quantiles = bands.astype(np.float32)
        at = self._head
        self._points[at], self._units[at], self._features[at], self._scales[at], self._bands[at] = point, unit, features, scale, quantiles
        self._head = (at + 1) % HORIZON_STEPS
        return quantiles

    def pause(self) -> None:
        """A bucket without an issue: keeps later actuals aligned with their origins."""
        self._points[self._head] = np.nan
        self._head = (self._head + 1) % HORIZON_STEPS

    def withdraw(self) -> None:
        """Take back the newest issue, because its bucket is issued again."""
        self._head = (self._head - 1) % HORIZON_STEPS
        self._points[self._head] = np.nan

    def coverage(self) -> tuple[F64, F64]:
        """Realised share inside the central 80 % band of late and its evidence in buckets, both float64[v, r]; NaN = not known yet."""
        inside, weight = self._covered
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight > 0, inside / weight, np.nan), weight

    def _own_error(self, unit: F64) -> F64:
        """Own mean absolute error of late [v, r, g], leaning on the unit while there is little evidence."""
        total, weight = self._errors
        own: F64 = (total + 3.0 * unit[..., None]) / (weight + 3.0)
        return own

    def _remember(self, residual: F64) -> None:
        known = ~np.isnan(residual)
        total = np.add.reduceat(np.where(known, np.abs(residual), 0.0), GROUP_STARTS, axis=-1)
        count = np.add.reduceat(known.astype(np.float64), GROUP_STARTS, axis=-1)
        scored = count > 0
        held = np.where(scored, ERROR_DECAY, 1.0)
        self._errors[0] = self._errors[0] * held + total / np.maximum(count, 1.0)
        self._errors[1] = self._errors[1] * held + scored

    def _correct(self, target: F64, error: F64, band: F32) -> None:
        known = ~np.isnan(error)
        missed = target[..., None] > band * (1.0 + 1e-6)
        moved = np.clip(self._offset * TRACK_LEAK + np.where(missed, _UP, _DOWN), -TRACK_LIMIT, TRACK_LIMIT)
        self._offset = np.where(known[..., None], moved, self._offset)
        inside = (target >= band[..., BAND[0]] * (1.0 - 1e-6)) & ~missed[..., BAND[1]] & known
        heard = known.sum(axis=0)
        held = COVERAGE_DECAY ** (heard / HORIZON_STEPS)
        self._covered[0] = self._covered[0] * held + inside.sum(axis=0) / HORIZON_STEPS
        self._covered[1] = self._covered[1] * held + heard / HORIZON_STEPS

    def _regress(self, error: F64, unit: F64, features: F64) -> None:
        known = ~np.isnan(error)
        size = np.log(np.maximum(np.abs(np.where(known, error, 0.0)) / np.where(known, unit, 1.0), _LEAST))
        target = np.clip(size, -_CLIP, 2 * _CLIP)
        mine = np.stack([known & (error >= 0), known & (error < 0)], axis=-1)  # [h, v, r, side]
        rows = np.where(mine[..., None], features, 0.0).transpose(0, 2, 3, 4, 1)  # [h, r, side, p, v]
        weighted = np.where(mine, target[..., None], 0.0).transpose(0, 2, 3, 1)[..., None]
        # twelve overlapping horizons of one origin are far from independent: each counts for a quarter
        self._normal += np.add.reduceat(rows @ rows.swapaxes(-1, -2), GROUP_STARTS, axis=0).swapaxes(0, 1) / 4.0
        self._moment += np.add.reduceat((rows @ weighted)[..., 0], GROUP_STARTS, axis=0).swapaxes(0, 1) / 4.0

    def _solve(self) -> None:
        ridge = RIDGE * np.eye(self._p)
        solved = np.linalg.solve(self._normal + ridge, (self._moment + RIDGE * self._prior)[..., None])
        self._beta = solved[..., 0].astype(np.float64)
        self._normal *= FORGET**RESHAPE_EVERY
        self._moment *= FORGET**RESHAPE_EVERY

    def _reshape(self) -> None:
        """Pooled quantiles per resource and horizon, blended with the prior by the number of independent residuals."""
        for resource in range(N_RESOURCES):
            for step in range(HORIZON_STEPS):
                pool = self._pool[:, :, resource, step].ravel()
                pool = np.sort(pool[~np.isnan(pool)])
                if not len(pool):
                    continue
                place = TAU * (len(pool) - 1)
                low = place.astype(np.int64)
                high = np.minimum(low + 1, len(pool) - 1)
                empirical = pool[low] + (place - low) * (pool[high] - pool[low])
                independent = len(pool) / max(1.0, (step + 1.0) / POOL_STRIDE)
                trust = independent / (independent + POOL_PRIOR)
                self._shape[resource, step] = trust * empirical + (1.0 - trust) * PRIOR_SHAPE
