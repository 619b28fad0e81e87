"""Series as the libraries want them: finite, without gaps at either end, long enough; and the answers put back in their rows.

Gap rule of the kernels: a missing bucket repeats the last known value. What has too few readings is not asked about: its answer is NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers.port import LEAST_READINGS, MissingExtra, Question
from coordinator.forecast.kernels import fill_gaps
from coordinator.model import F32, F64

LOST: Final = 72  # a series silent for six hours is not asked about: its past says little of when it comes back
_LIMIT: Final = 1e30  # float32 holds it, and squares of it in float64


def known(series: F32) -> F32:
    """Only finite, sane readings; all else is NaN."""
    result: F32 = np.where(np.isfinite(series) & (np.abs(series) < _LIMIT), series, np.nan)
    return result


def askable(question: Question, least: int = LEAST_READINGS) -> tuple[NDArray[np.int64], F64]:
    """Rows int64[m] with enough readings and no long silence, and their gap-free history float64[m, b]."""
    if question.series.shape[1] == 0:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    filled, readings, age = fill_gaps(known(question.series))
    rows = np.flatnonzero((readings >= least) & (age <= LOST))
    return rows, filled[rows]


def histories(question: Question, most: int, least: int = LEAST_READINGS) -> Iterator[tuple[int, F64]]:
    """(row, gap-free newest values from its first reading on, at most `most` of them) of every askable series."""
    rows, filled = askable(question, least)
    starts = np.argmax(np.isfinite(known(question.series)), axis=1) if len(rows) else rows
    for row, values in zip(rows, filled, strict=True):
        yield int(row), values[max(int(starts[row]), len(values) - most) :]


def one_by_one(question: Question, most: int, model: Callable[[F64], F64], least: int = LEAST_READINGS) -> tuple[F32, tuple[str, ...]]:
    """Means float32[n, steps] of a model that takes one series at a time, and what failed.

    A constant series is its own forecast: many libraries divide by its variance.
    """
    out = np.full((len(question.series), question.steps), np.nan, dtype=np.float32)
    failed: Counter[str] = Counter()
    for row, values in histories(question, most, least):
        if np.ptp(values) == 0.0:
            out[row] = values[-1]
            continue
        try:
            said = np.asarray(model(values), dtype=np.float64)
        except Exception as error:  # noqa: BLE001  (libraries raise anything on odd data; the row stays NaN and the failure is told)
            failed[f"{type(error).__name__}: {error}"[:200]] += 1
            continue
        out[row] = np.where(np.abs(said) < _LIMIT, said, np.nan)
    return out, tuple(f"{what} ({count} series)" for what, count in sorted(failed.items()))


def missing(extra: str, *modules: str) -> str | None:
    """Why a challenger cannot run: the first of `modules` that is not installed, and the extra that has it."""
    for module in modules:
        if find_spec(module) is None:
            return f"{module} is not installed: pip install 'tidegate[{extra}]'"
    return None


def demand(name: str, reason: str | None) -> None:
    """Raises MissingExtra when there is a reason."""
    if reason is not None:
        raise MissingExtra(f"challenger {name}: {reason}")
