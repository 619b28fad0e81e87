"""Cold start: what VMs like this one need, until its own readings say enough.

Two things are learned from every VM, per class of client, application and flavour: how large demand is, as a share of capacity, by time of
day; and how far demand moves from a VM's own level within the hour, by size of that level. A VM without any reading gets the first; from
its first reading on the second, spread around its own level: one reading says more of a VM than its class does, and its class says more of
what comes next than a few readings do. Own changes then narrow or widen the spread. On the Bitbrains trace, VMs held out, two to 23
readings, the pinball loss is .47-.81x (cpu) and .44-.82x (memory) that of the last value, with or without a Laplace spread.

A class is drawn towards its wider classes (flavour, client, application, pairs of them, the fleet) by the number of VMs it was learned
from: empirical Bayes (Efron and Morris 1975), one level after the other. Histograms fade with a half-life of 14 days and are bounded
(MAX_CLASSES x 42 KB). Pure; NaN is no reading and teaches nothing. Until LEAST_VMS have left their cold start the prior is NaN. Invariant:
quantiles are monotone and inside [0, capacity], a running peak never falls and never lies below a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import GIB, HORIZON_STEPS, KIB, MBIT, MIB

MODEL: Final = "class_prior"  # the name under which it speaks
COLD_BUCKETS: Final = 24  # two hours: then a VM speaks for itself, and teaches its class
MAX_CLASSES: Final = 512
OWN: Final = 0.02  # readings that the class counts for
LEAST_VMS: Final = 3.0  # VMs beyond their cold start before any class speaks
GONE: Final = 288.0  # readings that make a class count although its VMs are gone
SHRINK: Final = 3.0  # VMs that a wider class counts for
FORGET: Final = 0.99983  # per bucket: half-life 14 days
REFRESH: Final = 12  # buckets between two looks at the histograms
SLOTS: Final = 8  # parts of the day
DAY_S: Final = 86_400
# Stands for capacity where that is unknown, and the smallest amount worth telling apart
REFERENCE: Final = np.array([1000.0, 1.0 * GIB, 100.0 * MIB, 1000.0 * MBIT, 1000.0 * MBIT])
FLOORS: Final = np.array([2.0, 1.0 * MIB, 1.0 * KIB, 8000.0, 8000.0])
CLASS_CHANGES: Final = 6.0  # own changes that the class's usual change counts for
_OWN_SPREAD: Final = (0.2, 2.0)
_WANDER_DECAY: Final = 0.98
_GAIN: Final = 0.4  # of the own level
_GROUP_OF_STEP: Final = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])
_MIDDLES: Final = np.array([1, 4, 9])  # the step that stands for its part of the horizon
_LEVEL_EDGES: Final = np.concatenate([[0.0], np.exp(np.linspace(np.log(1e-6), np.log(2.0), 49))])  # shares of capacity
_LEVEL_STEP: Final = float(np.log(2.0 / 1e-6) / 48)
_CHANGE_SCALE: Final = 0.002
_CHANGE_REACH: Final = float(np.arcsinh(8.0 / _CHANGE_SCALE))
_CHANGE_BINS: Final = 41
_CHANGE_EDGES: Final = _CHANGE_SCALE * np.sinh(np.linspace(-_CHANGE_REACH, _CHANGE_REACH, _CHANGE_BINS + 1))  # logarithms, fine near 0
_BAND_EDGES: Final = np.array([1e-4, 1e-3, 1e-2, 0.05, 0.2])  # of the own level: what is idle moves otherwise than what is busy
_TAU: Final = np.array(LEVELS)


_Parts = tuple[str, str, str]


class ClassKey(NamedTuple):
    """What a VM has in common with others; "" = not known."""

    client: str = ""
    app: str = ""
    flavour: str = ""

    def wider(self) -> tuple[_Parts, ...]:
        """The classes it belongs to, widest first; parts that are not known make no class."""
        client, app, flavour = self
        found = [
            ("", "", flavour),
            (client, "", ""),
            ("", app, ""),
            (client, "", flavour),
            (client, app, ""),
            (client, app, flavour),
        ]
        kept = [key for key in dict.fromkeys(found) if any(key)]
        return (("", "", ""), *kept)


def flavour(vcpus: int, memory_bytes: int) -> str:
    """VMs of the same size share a flavour: "4x8" = 4 vCPUs and 8 GiB (rounded)."""
    return f"{vcpus}x{max(round(memory_bytes / GIB), 1)}"


class _Told(NamedTuple):
    """Of one class: quantiles of shares of capacity [kind, r, slot, q] and of changes [kind, r, g, band, q]; usual change [r, band]."""

    levels: F64
    changes: F64
    usual: F64


_NOTHING: Final = _Told(
    np.zeros((0, 2, N_RESOURCES, SLOTS, len(LEVELS))),
    np.zeros((0, 2, N_RESOURCES, len(_MIDDLES), len(_BAND_EDGES) + 1, len(LEVELS))),
    np.zeros((0, N_RESOURCES, len(_BAND_EDGES) + 1)),
)


class ClassPriors:
    """Histograms of all classes, and the newest hour of every VM. Axes: v VM, r resource, h step, q level."""

    def __init__(self) -> None:
        self._keys: list[ClassKey] = [ClassKey()]
        self._code: dict[ClassKey, int] = {ClassKey(): 0}
        self._class: NDArray[np.int64] = np.zeros(0, np.int64)  # of each VM; 0 = of no class
        self._levels: F32 = np.zeros((1, 2, N_RESOURCES, SLOTS, len(_LEVEL_EDGES) - 1), np.float32)  # class, mean or peak, ...
        self._changes: F32 = np.zeros((1, 2, N_RESOURCES, len(_MIDDLES), len(_BAND_EDGES) + 1, _CHANGE_BINS), np.float32)
        self._readings: F64 = np.zeros((0, N_RESOURCES))
        self._anchor: F64 = np.zeros((0, N_RESOURCES))
        self._wander: F64 = np.zeros((2, 0, N_RESOURCES))  # sum of |log changes| from the own level, and their number
        self._anchors: F64 = np.zeros((HORIZON_STEPS, 0, N_RESOURCES))  # own level at the newest twelve origins, newest first
        self._peaks: F64 = np.zeros((HORIZON_STEPS, 0, N_RESOURCES))
        self._buckets = 0
        self._told: dict[int, _Told] = {}  # made when asked for, kept for REFRESH buckets
        self._told_at = 0

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows). New VMs are of no class until `classify`."""
        self._class = take_rows(self._class, take, 0, 0)
        self._readings = take_rows(self._readings, take, 0, 0.0)
        self._anchor = take_rows(self._anchor, take, 0, np.nan)
        self._wander = take_rows(self._wander, take, 1, 0.0)
        self._anchors = take_rows(self._anchors, take, 1, np.nan)
        self._peaks = take_rows(self._peaks, take, 1, np.nan)

    def classify(self, rows: NDArray[np.int64], keys: Sequence[ClassKey]) -> None:
        """Say what the VMs of these rows are. Beyond MAX_CLASSES a new class is left out: its VMs are of no class."""
        before = len(self._keys)
        for row, key in zip(rows, keys, strict=True):
            if key not in self._code and len(self._keys) < MAX_CLASSES:
                self._code[key] = len(self._keys)
                self._keys.append(key)
            self._class[row] = self._code.get(key, 0)
        if len(self._keys) > before:
            grow = np.concatenate([np.arange(before), np.full(len(self._keys) - before, -1)]).astype(np.int64)
            self._levels = take_rows(self._levels, grow, 0, 0.0)
            self._changes = take_rows(self._changes, grow, 0, 0.0)

    @property
    def readings(self) -> F64:
        """How many readings each series has given, float64[v, r]."""
        return self._readings

    def learn(self, mean: F64, peak: F64, capacity: F64, start_s: int) -> None:
        """One closed bucket that starts at `start_s`: float64[v, r] each, NaN = unknown. A bucket that never came is one of NaN."""
        self._levels *= np.float32(FORGET)
        self._changes *= np.float32(FORGET)
        self._peaks = np.concatenate([peak[None], self._peaks[:-1]])
        highest = np.maximum.accumulate(self._peaks, axis=0)  # NaN once a bucket is missing
        scale = _scale(capacity)
        _count(mean, peak, scale, self._class, start_s % DAY_S * SLOTS // DAY_S, self._levels)
        _count_changes(mean, highest, scale, self._anchors, self._class, self._changes)
        known = ~np.isnan(mean)
        self._readings += known
        change = np.abs(np.log((np.maximum(mean, 0.0) + FLOORS) / (np.maximum(self._anchor, 0.0) + FLOORS)))
        self._wander += np.where(np.isnan(change), 0.0, np.stack([change, np.ones_like(change)]))
        self._wander *= _WANDER_DECAY
        gain = np.maximum(1.0 / np.maximum(self._readings, 1.0), _GAIN)
        moved = np.where(np.isnan(self._anchor), mean, self._anchor + gain * (mean - self._anchor))
        self._anchor = np.where(known, moved, self._anchor)
        self._anchors = np.concatenate([np.where(known, self._anchor, np.nan)[None], self._anchors[:-1]])
        self._buckets += 1

    def prior(self, rows: NDArray[np.int64], capacity: F64, start_s: int) -> tuple[F32, F32]:
        """Quantiles of the bucket means and of the running peak for VMs of these rows: float32[n, r, 12, q] twice, NaN = nothing known.

        capacity float64[n, r] (NaN = unbounded); step 0 starts at `start_s`.
        """
        classes, code = np.unique(self._class[rows], return_inverse=True)
        told = self._of_classes(classes)
        levels, changes, all_usual = (np.stack([getattr(t, name) for t in told]) for name in _Told._fields) if told else _NOTHING
        scale = _scale(capacity)
        slot = (start_s + np.arange(HORIZON_STEPS) * 300) % DAY_S * SLOTS // DAY_S
        said = levels[code][:, :, :, slot] * scale[:, None, :, None, None]  # [n, kind, r, h, q]
        own = self._anchor[rows]
        band = np.searchsorted(_BAND_EDGES, np.nan_to_num(own / scale))
        resource = np.arange(N_RESOURCES)[None, :]
        moves = changes[code[:, None], :, resource, :, band]  # [n, r, kind, g, q]
        usual = all_usual[code[:, None], resource, band]
        total, count = self._wander[:, rows]
        own_share = np.clip((total + CLASS_CHANGES * usual) / ((count + CLASS_CHANGES) * np.maximum(usual, 1e-9)), *_OWN_SPREAD)
        own_share = own_share[:, :, None, None, None]
        # calmer than its class: smaller logarithms; wilder: larger amounts, for a logarithm doubled is an amount squared
        moved = np.expm1(moves * np.minimum(own_share, 1.0)) * np.maximum(own_share, 1.0)
        around = (np.nan_to_num(own) + FLOORS)[:, :, None, None, None] * (1.0 + moved) - FLOORS[:, None, None, None]
        around = np.moveaxis(around[:, :, :, _GROUP_OF_STEP], 2, 1)
        readings = self._readings[rows]
        weight = (readings / (readings + OWN))[:, None, :, None, None]
        mixed = np.where(weight > 0, (1.0 - weight) * said + weight * around, said)
        mixed = np.maximum.accumulate(np.maximum(mixed, 0.0), axis=-1)
        bound = np.where(np.isnan(capacity), np.inf, capacity)[:, None, :, None, None]
        mixed = np.minimum(mixed, bound).astype(np.float32)
        highest = np.maximum(np.maximum.accumulate(mixed[:, 1], axis=2), mixed[:, 0])  # a running peak never falls, nor below a mean
        return mixed[:, 0], np.maximum.accumulate(highest, axis=2)

    def donors(self, row: int, r: int) -> list[tuple[ClassKey, int, float]]:
        """Whom VM `row` borrows resource r from: classes, widest first, VMs that taught each, and its share of what is borrowed."""
        taught = self._taught()
        seen = self._levels[:, 0, r].sum(axis=(1, 2))
        found: list[tuple[ClassKey, int, float]] = []
        for name in self._keys[self._class[row]].wider():
            codes = [code for code, key in enumerate(self._keys) if name in key.wider()]
            if seen[codes].sum() <= 0:
                continue
            vms = float(taught[codes].sum())
            trust = vms / (vms + SHRINK) if found else 1.0
            found = [(key, count, share * (1.0 - trust)) for key, count, share in found] + [(ClassKey(*name), int(vms), trust)]
        return found

    def _taught(self) -> F64:
        """VMs that each class was learned from."""
        taught = np.zeros(len(self._keys))
        np.add.at(taught, self._class, self._readings.max(axis=1, initial=0.0) >= COLD_BUCKETS)
        # a class whose VMs are gone still counts like one VM
        vms: F64 = np.maximum(taught, self._levels[:, 0].sum(axis=(2, 3)).max(axis=1) >= GONE)
        return vms

    def _of_classes(self, classes: NDArray[np.int64]) -> list[_Told]:
        """What these classes say after shrinkage."""
        if self._buckets - self._told_at >= REFRESH:
            self._told, self._told_at = {}, self._buckets
        missing = [int(code) for code in classes if int(code) not in self._told]
        if missing:
            taught = self._taught()
            wider = {name for code in missing for name in self._keys[code].wider()}
            groups: dict[_Parts, list[int]] = {name: [] for name in sorted(wider)}
            for code, key in enumerate(self._keys):
                for name in key.wider():
                    if name in groups:
                        groups[name].append(code)
            known = {name: (codes, float(taught[codes].sum())) for name, codes in groups.items()}
            levels, changes = self._shares(self._levels, 3, missing, known), self._shares(self._changes, 4, missing, known)
            if taught.sum() < LEAST_VMS:
                levels[:], changes[:] = np.nan, np.nan
            usual = np.nan_to_num(changes[:, 0, :, 0]) @ (np.abs(_CHANGE_EDGES[1:] + _CHANGE_EDGES[:-1]) / 2.0)
            shares, moves = _quantiles(levels, _LEVEL_EDGES), _quantiles(changes, _CHANGE_EDGES)
            self._told |= {code: _Told(shares[i], moves[i], usual[i]) for i, code in enumerate(missing)}
        return [self._told[int(code)] for code in classes]

    def _shares(self, counts: F32, pooled: int, wanted: list[int], known: dict[_Parts, tuple[list[int], float]]) -> F64:
        """Histograms [c, ..., bin] of the wanted classes that sum to 1, each drawn towards its wider ones; NaN = nothing known.

        `pooled` = the axis over which a cell that has seen little leans on its neighbours (parts of the day, sizes of the level);
        known: class -> (its codes, VMs it was learned from).
        """
        found: dict[_Parts, F64] = {}
        for name, (codes, _) in known.items():
            summed = counts[codes].sum(axis=0, dtype=np.float64)
            found[name] = summed + 0.05 * summed.sum(axis=pooled - 1, keepdims=True)
        out = np.full((len(wanted), *counts.shape[1:]), np.nan)
        for i, code in enumerate(wanted):
            for name in self._keys[code].wider():
                summed, vms = found[name], known[name][1]
                total = summed.sum(axis=-1, keepdims=True)
                share = summed / np.where(total > 0, total, np.nan)
                trust = np.where(np.isnan(out[i]), 1.0, vms / (vms + SHRINK))
                out[i] = np.where(total > 0, trust * share + (1.0 - trust) * np.nan_to_num(out[i]), out[i])
        return out


def _scale(capacity: F64) -> F64:
    scale: F64 = np.where(np.isfinite(capacity) & (capacity > 0), capacity, REFERENCE)
    return scale


def _quantiles(share: F64, edges: F64) -> F64:
    """LEVELS of histograms [..., bins] that sum to 1, linear inside a bin; NaN for a histogram of NaN."""
    cumulated = np.cumsum(share, axis=-1)
    out = np.full((*share.shape[:-1], len(LEVELS)), np.nan)
    known = np.isfinite(cumulated[..., -1])
    for q, tau in enumerate(_TAU):
        place = np.minimum((cumulated < tau * 0.999999).sum(axis=-1), share.shape[-1] - 1)
        here = np.take_along_axis(share, place[..., None], axis=-1)[..., 0]
        below = np.take_along_axis(cumulated, place[..., None], axis=-1)[..., 0] - here
        part = np.clip((tau - below) / np.maximum(here, 1e-12), 0.0, 1.0)
        out[..., q] = np.where(known, edges[place] + part * (edges[place + 1] - edges[place]), np.nan)
    return out


@njit(cache=True)
def _level_bin(value: float, bins: int) -> int:
    if value < _LEVEL_EDGES[1]:
        return 0
    return min(1 + int(np.log(value / _LEVEL_EDGES[1]) / _LEVEL_STEP), bins - 1)


@njit(cache=True)
def _count(mean: F64, peak: F64, scale: F64, of: NDArray[np.int64], slot: int, levels: F32) -> None:  # noqa: PLR0917  (numba: no keyword-only)
    bins = levels.shape[4]
    for i in range(mean.shape[0]):
        for r in range(mean.shape[1]):
            if np.isfinite(mean[i, r]):
                levels[of[i], 0, r, slot, _level_bin(mean[i, r] / scale[i, r], bins)] += 1.0
            if np.isfinite(peak[i, r]):
                levels[of[i], 1, r, slot, _level_bin(peak[i, r] / scale[i, r], bins)] += 1.0


@njit(cache=True)
def _count_changes(mean: F64, highest: F64, scale: F64, anchors: F64, of: NDArray[np.int64], changes: F32) -> None:  # noqa: PLR0917  (numba: no keyword-only)
    for g in range(_MIDDLES.shape[0]):
        step = _MIDDLES[g]
        for i in range(mean.shape[0]):
            for r in range(mean.shape[1]):
                anchor = anchors[step, i, r]
                if not np.isfinite(anchor):
                    continue
                band = 0
                while band < _BAND_EDGES.shape[0] and anchor / scale[i, r] > _BAND_EDGES[band]:
                    band += 1
                for kind in range(2):
                    value = mean[i, r] if kind == 0 else highest[step, i, r]
                    if np.isfinite(value):
                        change = np.log((max(value, 0.0) + FLOORS[r]) / (max(anchor, 0.0) + FLOORS[r]))
                        place = (np.arcsinh(change / _CHANGE_SCALE) + _CHANGE_REACH) / (2.0 * _CHANGE_REACH) * changes.shape[5]
                        changes[of[i], kind, r, g, band, min(max(int(place), 0), changes.shape[5] - 1)] += 1.0
