"""One global LightGBM quantile model over all VMs and resources: three boosters for the quantiles .1, .5 and .9 of every step.

Trained in seconds on one thread, deterministic (same history and seed, same bytes), predicts all series and steps in one call. Its
median is a member of the pool; its spread feeds the calibrator. It is never trusted beyond its scores: an extreme quantile objective is
unstable on heavy tails, so .1 and .9 are the outermost, and the conformal layer does the rest.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

import numpy as np

from coordinator.forecast.features import CLIP, features
from coordinator.forecast.members import Window, look
from coordinator.model import F32, F64, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

QUANTILES: Final = (0.1, 0.5, 0.9)
ROUNDS: Final = 70
MAX_ROWS: Final = 60_000
ORIGINS: Final = 120
LEAST_HISTORY: Final = 48  # buckets before the first training origin
LEAST_ROWS: Final = 200
PARAMETERS: Final = {
    "objective": "quantile",
    "learning_rate": 0.08,
    "num_leaves": 31,
    "min_data_in_leaf": 60,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 127,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def train(history: HistoryBlock, seed: int = 0, rounds: int = ROUNDS) -> bytes | None:
    """Fit on random (origin, series, step) triples of the history; None when there is too little of it."""
    import lightgbm  # noqa: PLC0415  (1.7 s and 120 MiB that only users of this model pay)

    rows, targets = _training_rows(history, seed)
    if len(rows) < LEAST_ROWS:
        return None
    data = lightgbm.Dataset(rows, label=targets, params={"max_bin": PARAMETERS["max_bin"], "verbosity": -1}, free_raw_data=False)
    texts = []
    for quantile in QUANTILES:
        booster = lightgbm.train({**PARAMETERS, "alpha": quantile, "seed": seed}, data, num_boost_round=rounds)
        texts.append(booster.model_to_string())
    return zlib.compress(json.dumps(texts).encode(), 6)


def _training_rows(history: HistoryBlock, seed: int) -> tuple[F32, F64]:
    rng = np.random.default_rng(seed)
    v, r, b = history.mean.shape
    series = history.mean.reshape(v * r, b)
    peaks = history.peak.reshape(v * r, b)
    capacity = history.capacity.reshape(-1).astype(np.float64)
    candidates = np.arange(LEAST_HISTORY, b - HORIZON_STEPS)
    origins = np.sort(rng.choice(candidates, size=min(ORIGINS, len(candidates)), replace=False)) if len(candidates) else candidates
    rows, targets = [np.zeros((0, 0), dtype=np.float32)], [np.zeros(0)]
    for newest in origins:
        seen = look(series[:, : newest + 1])
        now_s = history.end_s - (b - 1 - int(newest)) * BUCKET_S
        found = features(series[:, : newest + 1], peaks[:, : newest + 1], seen, now_s, capacity)
        share = MAX_ROWS // len(origins)
        which = rng.integers(0, v * r, size=share)
        step = rng.integers(0, HORIZON_STEPS, size=share)
        actual = series[which, newest + 1 + step].astype(np.float64)
        good = np.isfinite(actual) & (seen.readings[which] >= LEAST_HISTORY // 2)
        which, step = which[good], step[good]
        rows.append(found.rows(which, step))
        targets.append(np.clip((actual[good] - found.anchor[which]) / found.unit[which], -CLIP, CLIP))
    return np.concatenate(rows[1:] or rows), np.concatenate(targets)


class QuantileBooster:
    """A trained model. Raises ValueError when `model` is not one of `train`'s."""

    def __init__(self, model: bytes) -> None:
        import lightgbm  # noqa: PLC0415  (see train)

        try:
            texts = json.loads(zlib.decompress(model))
        except (zlib.error, ValueError) as error:
            raise ValueError(f"model of {len(model)} bytes is not a trained model: {error}") from error
        self._boosters: list[Any] = [lightgbm.Booster(model_str=text) for text in texts]

    def forecast(self, series: F32, peaks: F32, seen: Window, now_s: int, capacity: F64) -> F64:
        """Quantiles .1, .5, .9 as float64[3, n, 12], ordered and non-negative; series without any reading give NaN."""
        n = len(series)
        found = features(series, peaks, seen, now_s, capacity.reshape(-1))
        rows = found.rows(np.repeat(np.arange(n), HORIZON_STEPS), np.tile(np.arange(HORIZON_STEPS), n))
        said = np.stack([booster.predict(rows, num_threads=1).reshape(n, HORIZON_STEPS) for booster in self._boosters])
        said = np.sort(said, axis=0) * found.unit[:, None] + found.anchor[:, None]
        said[:, seen.readings == 0] = np.nan
        return np.maximum(said, 0.0)
