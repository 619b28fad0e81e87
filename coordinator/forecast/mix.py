"""Two calibrated answers into one: the pool's and the network's, mixed by what their quantiles cost each VM, then kept honest.

Mixer: both are scored by pinball loss when the actual arrives; a VM's own score is shrunk towards its resource's in the fleet, and the
quantiles are averaged with weights that follow the loss ratio. Averaging quantiles (not probabilities) keeps the answer sharp, and two
answers that err differently are better together (Lichtendahl, Grushka-Cockayne, Winkler 2013).
Tracker: coverage of what was said at last is held by online steps, up by a miss and down by a hit in the ratio of the level (adaptive
conformal inference, Gibbs and Candes 2021): one offset per resource, restlessness, step and level for the fleet, which moves fast because
many VMs vote, and one per VM on top. A value that equals several quantiles (idle at zero) counts for all levels that it may stand for.

Pure. Axes: v VM, r resource, h step, g part of the horizon, q level. Invariants: quantiles stay monotone, >= 0, NaN only where both are.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.calibrate import PRIOR_SHAPE, TAU, Q
from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_SIZES, GROUP_STARTS, GROUPS
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

POOL, NETWORK = 0, 1
DECAY: Final = 0.9976  # half-life a day: what costs most are rare bursts, and a few hours hold none
EVIDENCE: Final = 100.0  # the fleet counts like so many own scores, eight hours
FLEET_DECAY: Final = 0.995
PRIOR_RATIO: Final = -0.1  # of the logs: a network that passed its gate is trusted a little more
PRIOR_EVIDENCE: Final = 6.0  # buckets of the fleet
SHARPNESS: Final = 15.0  # a tenth less loss: weight .8
CLASSES: Final = 3  # calm, middling and restless VMs of a resource err differently
POOLED_GAIN: Final = 6.0
STEP: Final = 0.012  # of the own offset, in units of the spread
LIMIT: Final = 3.0
LEAK: Final = 0.9995
_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_UP: Final = TAU * STEP * (1.0 + np.abs(PRIOR_SHAPE))  # a miss; outer levels move in larger steps
_DOWN: Final = (TAU - 1.0) * STEP * (1.0 + np.abs(PRIOR_SHAPE))
_EDGES: Final = np.array([0.0, *((TAU[1:] + TAU[:-1]) / 2.0), 1.0])


class Mixer:
    """Scores and weights of both answers to one target."""

    def __init__(self) -> None:
        self._loss: F64 = np.zeros((2, 2, 0, N_RESOURCES, GROUPS))  # source; weighted sum and weight
        self._fleet: F64 = np.zeros((2, 2, N_RESOURCES, GROUPS))  # the same of all VMs, in units
        self._unit: F64 = np.ones((0, N_RESOURCES))
        self._said: list[tuple[F32 | None, F32 | None]] = []  # newest first

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._loss = take_rows(self._loss, take, 2, 0.0)
        self._unit = take_rows(self._unit, take, 0, 1.0)
        self._said = [
            (None if pool is None else take_rows(pool, take, 0, np.nan), None if net is None else take_rows(net, take, 0, np.nan))
            for pool, net in self._said
        ]

    def learn(self, actual: F64) -> None:
        """Actuals that became known: float64[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        if not self._said or not any(net is not None for _, net in self._said):
            return
        losses = np.full((2, *actual.shape), np.nan)
        for step, said in enumerate(self._said):
            for source, quantiles in enumerate(said):
                if quantiles is not None:
                    losses[source, ..., step] = _pinball(quantiles[:, :, step], actual[..., step])
        losses[:, np.isnan(losses).any(axis=0)] = np.nan  # only what both were asked compares
        self._take_in(losses)

    def rehearse(self, loss: F64) -> None:
        """A new network: its losses [o, v, r, h] at origins that it was not trained on replace what was known of the one before."""
        pool = self._loss[POOL, 0] / np.maximum(self._loss[POOL, 1], 1.0)
        spoken = self._loss[POOL, 1] > 0
        self._loss[NETWORK] = 0.0
        self._fleet[:] = 0.0
        for each in loss:
            before = np.where(spoken, pool, np.nan)[..., GROUP_OF_STEP]
            self._take_in(np.stack([np.where(np.isnan(each), np.nan, before), np.where(np.isnan(before), np.nan, each)]))

    def mix(self, pool: F32, network: F32 | None, unit: F64) -> tuple[F32, F64]:
        """Quantiles float32[v, r, h, q] of both -> (mixed, weight of the network float64[v, r, g]). unit float64[v, r] > 0."""
        self._said = [(pool, network), *self._said[: HORIZON_STEPS - 1]]
        self._unit = unit
        if network is None:
            return pool, np.zeros((*pool.shape[:2], GROUPS))
        weight = self._weight()
        share = weight[..., GROUP_OF_STEP][..., None]
        mixed = pool * (1.0 - share) + network * share
        mixed = np.where(np.isnan(network), pool, np.where(np.isnan(pool), network, mixed))
        return mixed.astype(np.float32), weight

    def pause(self) -> None:
        """A bucket without an issue."""
        self._said = [(None, None), *self._said[: HORIZON_STEPS - 1]]

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said = self._said[1:]

    def _take_in(self, losses: F64) -> None:
        """float64[source, v, r, h]; both or neither known."""
        known = np.isfinite(losses)
        total = np.add.reduceat(np.where(known, losses, 0.0), GROUP_STARTS, axis=-1)
        count = np.add.reduceat(known.astype(np.float64), GROUP_STARTS, axis=-1)
        scored = count > 0
        mean = total / np.maximum(count, 1.0)
        self._loss[:, 0] = self._loss[:, 0] * np.where(scored, DECAY, 1.0) + mean
        self._loss[:, 1] = self._loss[:, 1] * np.where(scored, DECAY, 1.0) + scored
        told = scored.any(axis=1)
        votes = np.maximum(scored.sum(axis=1), 1)
        decay = np.where(told, FLEET_DECAY, 1.0)
        self._fleet[:, 0] = self._fleet[:, 0] * decay + (mean / self._unit[None, :, :, None]).sum(axis=1) / votes
        self._fleet[:, 1] = self._fleet[:, 1] * decay + told

    def _weight(self) -> F64:
        ratio, trust = _log_ratio(self._loss)
        fleet_ratio, votes = _log_ratio(self._fleet)
        fleet = (fleet_ratio * votes + PRIOR_RATIO * PRIOR_EVIDENCE) / (votes + PRIOR_EVIDENCE)
        shrunk = (trust * ratio + EVIDENCE * fleet) / (trust + EVIDENCE)
        result: F64 = 1.0 / (1.0 + np.exp(SHARPNESS * shrunk))
        return result


def _log_ratio(losses: F64) -> tuple[F64, F64]:
    """[source; sum and weight; ...] -> (log of the network's mean loss over the pool's, 0 where nothing compares; evidence)."""
    (pool, pool_weight), (network, network_weight) = losses
    trust = np.minimum(pool_weight, network_weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (network / network_weight) / (pool / pool_weight)
    usable = (trust > 0) & np.isfinite(ratio) & (ratio > 0)
    return np.where(usable, np.log(np.clip(np.where(usable, ratio, 1.0), 0.05, 20.0)), 0.0), np.where(usable, trust, 0.0)


class Tracker:
    """Holds the coverage of one target."""

    def __init__(self) -> None:
        self._own: F64 = np.zeros((0, N_RESOURCES, GROUPS, Q))
        self._pooled: F64 = np.zeros((N_RESOURCES, CLASSES, HORIZON_STEPS, Q))
        self._said: list[tuple[F32, NDArray[np.int64]] | None] = []  # bands and classes, newest first

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._own = take_rows(self._own, take, 0, 0.0)
        self._said = [None if s is None else (take_rows(s[0], take, 0, np.nan), take_rows(s[1], take, 0, 0)) for s in self._said]

    def learn(self, actual: F64) -> None:
        """As Mixer.learn."""
        moves = np.zeros((*actual.shape, Q))
        known = np.zeros(actual.shape, dtype=bool)
        for step, said in enumerate(self._said):
            if said is None:
                continue
            bands, classes = said
            band, came = bands[:, :, step], actual[..., step]
            told = np.isfinite(came) & np.isfinite(band[..., 0])
            below = _below(came, band)
            move = np.where(told[..., None], _UP * (1.0 - below) + _DOWN * below, 0.0)
            moves[..., step, :], known[..., step] = move, told
            for resource in range(N_RESOURCES):
                for group in range(CLASSES):
                    votes = told[:, resource] & (classes[:, resource] == group)
                    count = int(votes.sum())
                    if count:
                        # few votes move it like one VM's own would
                        gain = min(POOLED_GAIN, 1.0 + count / 8.0)
                        self._pooled[resource, group, step] += gain * move[votes, resource].mean(axis=0)
        total = np.add.reduceat(moves, GROUP_STARTS, axis=2)
        scored = np.add.reduceat(known.astype(np.float64), GROUP_STARTS, axis=2)[..., None]
        self._own = np.clip(self._own * np.where(scored > 0, LEAK, 1.0) + total / GROUP_SIZES[:, None], -LIMIT, LIMIT)
        np.clip(self._pooled, -LIMIT, LIMIT, out=self._pooled)

    def hold(self, quantiles: F32, unit: F64, level: F64, capacity: F64) -> F32:
        """Quantiles [v, r, h, q] -> the same with their offsets. unit, level float64[v, r]; capacity NaN = unbounded."""
        restless = unit / (level + unit)
        classes = np.zeros(unit.shape, dtype=np.int64)
        for resource in range(N_RESOURCES):
            known = np.isfinite(restless[:, resource])
            if known.sum() >= 3 * CLASSES:
                bounds = np.quantile(restless[known, resource], (1 / 3, 2 / 3))
                classes[:, resource] = np.searchsorted(bounds, np.nan_to_num(restless[:, resource]))
        spread = (quantiles[..., _HIGH] - quantiles[..., _LOW]).astype(np.float64) / 2.0 + 0.1 * unit[..., None]
        offset = self._own[:, :, GROUP_OF_STEP] + self._pooled[np.arange(N_RESOURCES)[None, :], classes]
        held = np.sort(quantiles + offset * spread[..., None], axis=-1)
        held = np.maximum(held, 0.0)
        held = np.where(np.isnan(capacity)[..., None, None], held, np.minimum(held, capacity[..., None, None]))
        result: F32 = held.astype(np.float32)
        self._said = [(result, classes), *self._said[: HORIZON_STEPS - 1]]
        return result

    def pause(self) -> None:
        """A bucket without an issue."""
        self._said = [None, *self._said[: HORIZON_STEPS - 1]]

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said = self._said[1:]


def _below(came: F64, band: F32) -> F64:
    """How far each level lies above the actual's rank: [v, r], [v, r, q] -> float64[v, r, q], 0 or 1 but where they tie.

    A tie with the levels a..b has any rank from half way before a to half way after b.
    """
    value = came[..., None]
    tied = np.abs(value - band) <= 1e-6 * np.abs(value) + 1e-9
    first = tied.argmax(axis=-1)
    last = Q - 1 - tied[..., ::-1].argmax(axis=-1)
    low, high = _EDGES[first][..., None], _EDGES[last + 1][..., None]
    shared = np.clip((TAU - low) / (high - low), 0.0, 1.0)
    return np.where(np.any(tied, axis=-1, keepdims=True), shared, (value < band).astype(np.float64))


def _pinball(quantiles: F32, actual: F64) -> F64:
    """Mean over levels: [v, r, q] against [v, r]."""
    error = actual[..., None] - quantiles
    result: F64 = np.maximum(TAU * error, (TAU - 1.0) * error).mean(axis=-1)
    return result
