"""What a challenger is asked and what it answers.

A challenger is a model that is too dear for the tick (milliseconds to seconds a series): it forecasts some series now and then, elsewhere
than the tick, far enough ahead to be of use until its next turn. Its answer is weighed against the pool's for those series, by what both
were worth there (board.py, forecast/challenged.py). Challengers are pure in the sense of the package (same question and seed, same answer);
what the libraries behind them do with files and clocks stays behind this port. Axes: n series, b bucket, h step, q level of LEVELS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F32, LEVELS, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

MOST_STEPS: Final = 72  # six hours: planning's horizon, and longer than any turn
LEAST_READINGS: Final = 24  # two hours; with fewer a challenger cannot say


@dataclass(frozen=True, kw_only=True)
class Question:
    """Demand of some series up to now. Raises ValueError, naming the field, for shapes that do not fit or a horizon out of range.

    series float32[n, b] bucket means with NaN; resource int64[n] index into RESOURCES; bucket 0 starts at `start_s`; the first of `steps`
    is the bucket after the newest.
    """

    series: F32
    resource: NDArray[np.int64]
    start_s: int
    steps: int = HORIZON_STEPS

    def __post_init__(self) -> None:
        if self.series.ndim != 2:
            raise ValueError(f"series of shape {self.series.shape}: must be [series, buckets]")
        if self.resource.shape != (len(self.series),):
            raise ValueError(f"resource of shape {self.resource.shape}: must be [{len(self.series)}]")
        if len(self.resource) and not (self.resource.min() >= 0 and self.resource.max() < N_RESOURCES):
            raise ValueError(f"resource {self.resource.min()} to {self.resource.max()}: allowed 0 to {N_RESOURCES - 1}")
        if self.start_s % BUCKET_S:
            raise ValueError(f"start_s {self.start_s}: must be a multiple of {BUCKET_S}")
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps {self.steps}: allowed 1 to {MOST_STEPS}")

    @property
    def issued_s(self) -> int:
        """End of the newest bucket: where step 0 starts."""
        return int(self.start_s + self.series.shape[1] * BUCKET_S)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """mean float32[n, steps] (its own idea of the middle), quantiles float32[n, steps, q] or None; NaN = cannot say.

    `failures` tells what libraries could not do, one line a kind: "ValueError: ... (3 series)".
    """

    mean: F32
    quantiles: F32 | None = None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChallengerForecast:
    """An answer with its address: row i is resource `resource[i]` of `vm_ids[i]`; step k is the bucket that starts at issued_s + 300 k."""

    name: str
    issued_s: int
    vm_ids: tuple[str, ...]
    resource: NDArray[np.int64]
    mean: F32
    quantiles: F32 | None = None
    failures: tuple[str, ...] = ()

    def select(self, rows: NDArray[np.int64]) -> ChallengerForecast:
        """The same with only these rows, in this order."""
        quantiles = None if self.quantiles is None else self.quantiles[rows]
        vm_ids = tuple(self.vm_ids[row] for row in rows)
        return replace(self, vm_ids=vm_ids, resource=self.resource[rows], mean=self.mean[rows], quantiles=quantiles)


class Challenger(Protocol):
    """One model, selectable by name. Never raises on data (constant, zero, spiky, gapped, short, negative); NaN where it cannot say."""

    @property
    def name(self) -> str:
        """Its name in the registry."""
        ...

    @property
    def alone(self) -> bool:
        """Whether it looks at each series alone: then a long question may be put in parts, and cut short."""
        ...

    def available(self) -> str | None:
        """None when it can run here; else why not, naming the extra to install."""
        ...

    def forecast(self, question: Question, seed: int = 0) -> Answer:
        """Same question and seed, same answer. Raises MissingExtra when `available` gave a reason."""
        ...


class MissingExtra(RuntimeError):
    """The packages behind a challenger are not installed; the message names the extra."""


def bounded(mean: F32, quantiles: F32 | None, failures: tuple[str, ...] = ()) -> Answer:
    """An answer made fit: not finite becomes NaN, not below 0 (demand never is), quantiles in order."""
    mean = np.maximum(np.where(np.isfinite(mean), mean, np.nan), 0.0).astype(np.float32)
    if quantiles is None:
        return Answer(mean=mean, failures=failures)
    whole = np.isfinite(quantiles).all(axis=-1, keepdims=True)
    ordered = np.sort(np.where(whole, quantiles, np.nan), axis=-1)
    assert quantiles.shape == (*mean.shape, len(LEVELS))
    return Answer(mean=mean, quantiles=np.maximum(ordered, 0.0).astype(np.float32), failures=failures)
