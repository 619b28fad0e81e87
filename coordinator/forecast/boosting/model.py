"""A trained global model: quantiles of the bucket means for every step, and of the largest value of the next hour.

Predicts without LightGBM (trees.py), so a forecast worker needs neither its import nor its memory. Targets were asinh((x - anchor) / unit):
quantiles pass through monotone transforms, and heavy tails don't rule the training. It is never trusted beyond its scores; extreme
quantiles are the calibrator's.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec
import numpy as np

from coordinator.forecast.boosting.profiles import Profiles, packed, restored
from coordinator.forecast.boosting.trees import MOST_LEAVES, Forest, pack, parse, restore
from coordinator.forecast.covariates import NONE_KNOWN, Covariates, EventTimes
from coordinator.forecast.features import STATIC, STEP, Features, describe
from coordinator.forecast.members import Window
from coordinator.model import F32, F64, N_RESOURCES, SIGNALS
from shared.units import HORIZON_STEPS

QUANTILES: Final = (0.1, 0.5, 0.9)
PEAK_QUANTILES: Final = (0.5, 0.9, 0.95)
VERSION: Final = 2  # 1 knew other covariates
MOST_Z: Final = 9.0  # sinh(9) = 4,050 units: beyond any target


class Learnt(NamedTuple):
    """What training hands over."""

    mode: str
    means: Forest  # one output a quantile of QUANTILES; features STATIC + STEP
    peaks: Forest  # one output a quantile of PEAK_QUANTILES; features STATIC
    profiles: Profiles  # of clients and applications


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    version: int


class _Packed(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    mode: str
    means: dict[str, tuple[str, list[int], bytes]]
    peaks: dict[str, tuple[str, list[int], bytes]]
    profiles: dict[str, bytes]


def encode(learnt: Learnt) -> bytes:
    """Portable bytes; the same model gives the same bytes."""
    parts = _Packed(
        version=VERSION, mode=learnt.mode, means=pack(learnt.means), peaks=pack(learnt.peaks), profiles=dict(packed(learnt.profiles))
    )
    return zlib.compress(msgspec.msgpack.encode(parts), 6)


def decode(model: bytes) -> Learnt:
    """Raises ValueError when `model` is not one that `encode` made for these features."""
    try:
        content = zlib.decompress(model)
        version = msgspec.msgpack.decode(content, type=_Version).version
        if version != VERSION:
            raise ValueError(f"version {version}: this code reads {VERSION}; train anew")
        parts = msgspec.msgpack.decode(content, type=_Packed)
        learnt = Learnt(parts.mode, restore(parts.means), restore(parts.peaks), restored(parts.profiles))
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"model of {len(model)} bytes is not a trained model: {error}") from error
    wanted = ((learnt.means, QUANTILES, len(STATIC) + len(STEP)), (learnt.peaks, PEAK_QUANTILES, len(STATIC)))
    for forest, quantiles, features in wanted:
        if forest.outputs != len(quantiles) or forest.features != features:
            found = f"{forest.outputs} outputs of {forest.features} features"
            raise ValueError(f"model of {len(model)} bytes is not a trained model: {found}, allowed {len(quantiles)} of {features}")
    return learnt


class QuantileBooster:
    """A trained model at work. Raises ValueError when `model` is not one of `train`'s."""

    def __init__(self, model: bytes) -> None:
        self._learnt = decode(model)

    @property
    def profiles(self) -> Profiles:
        """What clients and applications usually do, for `features.describe`."""
        return self._learnt.profiles

    def describe(
        self, means: F32, peaks: F32, capacity: F64, *, end: int, now_s: int, known: Covariates = NONE_KNOWN, ahead: bool = True
    ) -> Features:
        """Features of all series at one origin: bucket `end - 1`, which starts at `now_s`, is the newest. Arrays as of `features.describe`.

        `ahead` False leaves out what only `bucket_quantiles` needs.
        """
        n = len(means)
        at = np.full(n, end, dtype=np.int64)
        seconds = np.full(n, now_s, dtype=np.int64)
        which = np.arange(n)
        groups = self._learnt.profiles.of(known, which, seconds)
        return describe(means, peaks, capacity, which=which, ends=at, now_s=seconds, known=known, groups=groups, ahead=ahead)

    def bucket_quantiles(self, features: Features) -> F64:
        """QUANTILES of the bucket means, float64[3, n, 12]: ordered, not negative; NaN for series without a reading.

        Every step is asked: four of them with lines between cost 2-19 % of the pinball where load comes in surges.
        """
        said = self._learnt.means.predict(features.series, features.steps)
        return _back(said, features.anchor[:, None], features.unit[:, None], features.readings[:, None] == 0)

    def peak_quantiles(self, features: Features) -> F64:
        """PEAK_QUANTILES of the largest value of the next twelve buckets, float64[3, n]: ordered, not negative; NaN without a reading."""
        said = self._learnt.peaks.predict(features.series)[:, :, 0]
        return _back(said, features.peak_anchor, features.peak_unit, features.readings == 0)

    def forecast(self, series: F32, peaks: F32, seen: Window, now_s: int, capacity: F64, *, known: Covariates = NONE_KNOWN) -> F64:
        """QUANTILES as float64[3, n, 12] for series float32[n, b] whose newest bucket starts at `now_s`. `seen` is not needed."""
        del seen
        features = self.describe(series, peaks, capacity.reshape(-1), end=series.shape[1], now_s=now_s, known=known)
        return self.bucket_quantiles(features).reshape(len(QUANTILES), len(series), HORIZON_STEPS)


def exercise() -> None:
    """Run every kernel of a forecast with production's types on little data: compiled, or read from the cache, at once (see warm.py)."""
    one_leaf = "\n\nTree=0\nnum_leaves=1\nleaf_value=0"
    means = parse([f"max_feature_idx={len(STATIC) + len(STEP) - 1}{one_leaf}"] * len(QUANTILES))
    peaks = parse([f"max_feature_idx={len(STATIC) - 1}{one_leaf}"] * len(PEAK_QUANTILES))
    wide = [
        replace(forest, mask=forest.mask.astype(np.uint64), leaf=np.zeros((len(forest.nodes), MOST_LEAVES))) for forest in (means, peaks)
    ]
    series = np.ones((N_RESOURCES, HORIZON_STEPS), dtype=np.float32)
    known = Covariates(events=EventTimes.none(1), signals=np.ones((1, len(SIGNALS), HORIZON_STEPS), dtype=np.float32))
    nobody = Profiles.none()
    for learnt in (Learnt("gbdt", means, peaks, nobody), Learnt("rf", wide[0], wide[1], nobody)):  # 32 and 64 leaves are two compilations
        booster = QuantileBooster(encode(learnt))
        found = booster.describe(series, series, np.full(len(series), np.nan), end=series.shape[1], now_s=0, known=known)
        booster.bucket_quantiles(found)
        booster.peak_quantiles(found)


def _back(said: F64, anchor: F64, unit: F64, unknown: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> F64:
    """From the trees' scale to the data's."""
    values = np.sinh(np.clip(np.sort(said, axis=0), -MOST_Z, MOST_Z)) * unit + anchor
    out: F64 = np.where(unknown, np.nan, np.maximum(values, 0.0))
    return out


def scaled(actual: F64, anchor: F64, unit: F64) -> F64:
    """The target of training: inverse of the way back."""
    out: F64 = np.clip(np.arcsinh((actual - anchor) / unit), -MOST_Z, MOST_Z)
    return out
