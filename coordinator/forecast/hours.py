"""The peak of the next hour from all who have an answer: the mixture, the network, LightGBM's peak model, and the peaks of the day's hours.

No one of them is safe: on restless load nothing beats the highest hour of the day at the outermost levels, on surges LightGBM does, and on
load that is near noise the network. So each level of each resource has weights of its own, which follow what each source's quantile at
that level, and at those beside it, cost the fleet. Only the whole hour is blended; the running peak of the steps before it is laid out as
the mixture had it.

Pure. Axes: v VM, r resource, h step, q level, k source. Invariants: quantiles stay monotone in level and step, NaN only where the mixture
is. State: 1,728 bytes a series for what was said, once a network or LightGBM speaks, and 36 for the day's hours.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.kernels import hours
from coordinator.forecast.rows import NEW, take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

DECAY: Final = 0.9975  # half-life a day
SHARPNESS: Final = 80.0  # a hundredth less loss: twice the weight
EVIDENCE: Final = 192.0  # buckets until what was measured counts half: sixteen hours, because hours overlap
NEIGHBOURS: Final = 0.5  # of a level's record is that of the levels beside it: the last ones are broken once in a hundred hours
NEXT_TO_NOTHING: Final = 1e-9  # in units: who never erred compares too
REFRESHED: Final = 8  # each tick ranks the hours of one series in eight
# Trust in each source by level before it was heard, in the order of hours.SOURCES: nearly what a day of records comes to on most sets
AT_FIRST: Final = np.array(
    [
        [0.30, 0.30, 0.30, 0.30, 0.30, 0.17, 0.08, 0.05, 0.05],
        [0.30, 0.30, 0.25, 0.20, 0.20, 0.08, 0.04, 0.03, 0.03],
        [0.05, 0.20, 0.30, 0.35, 0.35, 0.60, 0.73, 0.55, 0.45],
        [0.35, 0.20, 0.15, 0.15, 0.15, 0.15, 0.15, 0.37, 0.47],
    ]
)


class PastHours(NamedTuple):
    """`day` float32[v * r, b <= 288] bucket peaks up to now without gaps; of them `readings` float64[v * r] were read."""

    day: F32
    readings: F64


class HourBlend(NamedTuple):
    """How one VM's newest answer came about."""

    sources: tuple[str, ...]
    trust: F32  # [r, k, q]
    said: F32  # [r, k, q] of the whole hour; NaN = had no answer
    blended: F32  # [r, h, q]


class HourPeaks:
    """Weights of the sources. Call once per bucket `learn`, then `blend` or `pause`."""

    def __init__(self) -> None:
        self._said: F32 | None = None  # [issue modulo 12, v, r, k, q]
        self._past: F32 = np.zeros((0, N_RESOURCES, hours.Q), dtype=np.float32)
        self._loss: F64 = np.zeros((N_RESOURCES, hours.K, hours.Q))
        self._weight: F64 = np.zeros(N_RESOURCES)
        self._unit: F32 = np.ones((0, N_RESOURCES), dtype=np.float32)
        self._spoke: NDArray[np.bool_] = np.zeros(HORIZON_STEPS, dtype=bool)
        self._blended: tuple[F32, F32] | None = None  # of the newest issue: trust [r, k, q] and answer [v, r, h, q]
        self._speakers = (False, False)  # the network, boosting
        self._issue = 0
        self.resumed = False  # the newest issue is the first with these speakers: records of earlier ones say nothing of it

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        if self._said is not None:
            self._said = take_rows(self._said, take, 1, np.nan)
        self._past = take_rows(self._past, take, 0, np.nan)
        self._unit = take_rows(self._unit, take, 0, 1.0)
        self._blended = None

    def learn(self, came: F32 | F64) -> None:
        """Peak of the hour that has just ended, float[v, r], NaN = not known: what the issue twelve buckets ago foretold."""
        at = self._issue % HORIZON_STEPS
        if self._said is None or not self._spoke[at]:
            return
        loss, votes = np.zeros_like(self._loss), np.zeros_like(self._weight)
        said = self._said[at].reshape(-1, hours.K, hours.Q)
        hours.score(said, np.ascontiguousarray(came, dtype=np.float32).ravel(), self._unit.ravel(), loss, votes)
        told = votes > 0
        decay = np.where(told, DECAY, 1.0)
        self._loss = self._loss * decay[:, None, None] + loss / np.maximum(votes, 1.0)[:, None, None]
        self._weight = self._weight * decay + told

    def blend(self, mixed: F32, network: F32 | None, boosted: F64 | None, past: PastHours, unit: F32 | F64) -> F32:
        """Quantiles of the running peak float32[v, r, h, q].

        mixed, network float32[v, r, h, q]; boosted float64[3, v * r], the .5, .9 and .95 quantile of the whole hour (None = does not
        speak); unit float[v, r] > 0: usual change from bucket to bucket.
        """
        if network is None and boosted is None:
            self.pause()
            return mixed
        speakers = (network is not None, boosted is not None)
        self.resumed = speakers != self._speakers
        if self.resumed:  # what was compared without one of them says nothing of all
            self._speakers = speakers
            self._loss[:], self._weight[:], self._spoke[:] = 0.0, 0.0, False
        v, steps = len(mixed), mixed.shape[2]
        self._unit = np.array(unit, dtype=np.float32)
        ranks = self._past.reshape(-1, hours.Q)
        hours.past_hours(past.day, past.readings, self._issue, REFRESHED, ranks)
        if self._said is None:
            self._said = np.full((HORIZON_STEPS, v, N_RESOURCES, hours.K, hours.Q), np.nan, dtype=np.float32)
        at, trust = self._issue % HORIZON_STEPS, self.trust()
        flat = (-1, steps, hours.Q)
        out = np.empty_like(mixed, order="C")
        hours.blend(
            np.ascontiguousarray(mixed, dtype=np.float32).reshape(flat),
            np.empty((0, steps, hours.Q), dtype=np.float32) if network is None else np.ascontiguousarray(network).reshape(flat),
            np.empty((3, 0)) if boosted is None else np.ascontiguousarray(boosted),
            ranks,
            trust,
            self._said[at].reshape(-1, hours.K, hours.Q),
            out.reshape(flat),
        )
        self._spoke[at] = True
        self._issue += 1
        self._blended = trust, out
        return out

    def explain(self, row: int) -> HourBlend | None:
        """The newest answer for the VM in `row`; None = the mixture stands alone."""
        if self._blended is None or self._said is None:
            return None
        trust, out = self._blended
        return HourBlend(hours.SOURCES, trust, self._said[(self._issue - 1) % HORIZON_STEPS, row], out[row])

    def trust(self) -> F32:
        """Weights float32[r, k, q] of the sources, summing to 1 over those that speak."""
        present = np.array([True, *self._speakers, True])
        loss = self._loss + NEXT_TO_NOTHING
        lost = np.log(np.clip(loss / loss[:, :1], 0.05, 20.0))
        around = np.concatenate([lost[..., :1], lost, lost[..., -1:]], axis=-1)
        lost = (1.0 - NEIGHBOURS) * lost + NEIGHBOURS / 2.0 * (around[..., :-2] + around[..., 2:])
        sure = (self._weight / (self._weight + EVIDENCE))[:, None, None]
        worth = np.exp((1.0 - sure) * np.log(AT_FIRST) - SHARPNESS * sure * lost) * present[None, :, None]
        trust: F32 = (worth / worth.sum(axis=1, keepdims=True)).astype(np.float32)
        return trust

    def pause(self) -> None:
        """A bucket in which only the mixture speaks, or nobody."""
        self._blended, self.resumed = None, False
        self._spoke[self._issue % HORIZON_STEPS] = False
        self._issue += 1

    def withdraw(self) -> None:
        """Take back the newest issue, because its bucket is issued again."""
        self._blended = None
        self._issue -= 1
        self._spoke[self._issue % HORIZON_STEPS] = False


def exercise() -> None:
    """Run every kernel once, with production's types (see warm.py): the engine of a warming has neither network nor LightGBM."""
    part = HourPeaks()
    part.rearrange(np.array([NEW]))
    said = np.ones((1, N_RESOURCES, HORIZON_STEPS, hours.Q), dtype=np.float32)
    day, readings, unit = np.ones((N_RESOURCES, 48), dtype=np.float32), np.full(N_RESOURCES, 48.0), np.ones((1, N_RESOURCES))
    for _ in range(HORIZON_STEPS):
        part.blend(said, said, np.ones((3, N_RESOURCES)), PastHours(day, readings), unit)
    part.learn(np.ones((1, N_RESOURCES)))
