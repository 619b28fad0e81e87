"""How good the forecasts are: errors by VM, client, application, model, mode and step ahead, of the last hour and day and since the start.

Every issued forecast is scored against every bucket it spoke of, as the bucket closes, beside a Naive forecast on the same pairs. The
windows are exponential: what lies one window back weighs exp(-1). Memory is bounded: per VM 1.6 KB of sums and 16 KB of issued steps that
are still open; VMs unseen for a day are dropped; clients and models beyond their bound are summed under OTHERS.

Pure: the same calls give the same bytes. Invariant: a pair counts in every view or in none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import NEW, take_rows
from coordinator.learning.scoring import (
    ABOVE,
    ABSOLUTE,
    BIAS,
    COUNT,
    DEMAND,
    INSIDE_80,
    INSIDE_95,
    MEASURES,
    NAIVE,
    PINBALL,
    score_step,
)
from coordinator.model import F32, F64, N_RESOURCES, BucketBlock, ForecastBlock
from shared.model import Mode
from shared.units import BUCKET_S, HORIZON_STEPS, RESOURCES

WINDOWS: Final = ("hour", "day", "total")
DECAYS: Final = np.exp([-BUCKET_S / 3600, -BUCKET_S / 86_400, 0.0])  # per bucket
GROUP_OF_STEP: Final = (0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2)  # 5-10, 15-30, 35-60 minutes
GROUPS: Final = 3
MODES: Final = tuple(Mode)
OTHERS: Final = "(others)"
NO_MODEL: Final = "none"
MAX_CLIENTS: Final = 1024
MAX_MODELS: Final = 256
FORGET_AFTER: Final = 288  # a VM unseen for a day loses its sums
EVIDENCE: Final = 24.0  # pairs; with fewer a series is hardly called bad
# A loss below these says nothing: 2 millicores, 1 MiB, 1 KiB/s, 8 kbit/s twice
FLOORS: Final = np.array([2.0, 1024.0**2, 1024.0, 8000.0, 8000.0])
_BOUNDS: Final = (0.1, 0.9, 0.025, 0.975, 0.5)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Scores; arrays [..., r], NaN = nothing scored. mae and bias (forecast minus actual) are in the resource's unit.

    to_naive = pinball loss over Naive's on the same pairs (below 1 is better); to_demand = pinball loss over mean demand.
    """

    pairs: F64  # weighted by age in a window that decays
    to_naive: F64
    to_demand: F64
    mae: F64
    bias: F64
    coverage_80: F64
    coverage_95: F64
    above: F64  # share of actuals above the 97.5 % bound


@dataclass(frozen=True, kw_only=True)
class WorstSeries:
    """A series that is forecast badly: pinball over Naive's, drawn towards 1 while there is little evidence."""

    vm_id: str
    resource: str
    to_naive: float
    pairs: float


@dataclass(frozen=True, kw_only=True)
class BucketLoss:
    """What one bucket decided, summed over the steps that spoke of it: float64[rows, r].

    `take` = how rows moved since the bucket before (see forecast.rows), None = not at all.
    """

    start_s: int
    take: NDArray[np.int64] | None
    pinball: F64
    naive: F64
    count: F64


@dataclass
class _Issued:
    issued_s: int
    vm_ids: tuple[str, ...]
    levels: F64
    bounds: NDArray[np.int64]
    model: NDArray[np.int16]
    steps: list[tuple[F32, F32] | None]  # quantiles [v, r, q] and mean [v, r] of the steps that are still open
    last: F32
    spread: F32


@dataclass(frozen=True)
class _Sums:
    """What one bucket adds."""

    by_vm: F64  # [g, rows, r, m]
    by_model: F64  # [g, k, r, m]
    by_step: F64  # [h, r, m]


class ForecastAccuracy:
    """Give it every issued forecast and every closed bucket, in time order."""

    def __init__(self) -> None:
        self._issued: deque[_Issued] = deque(maxlen=HORIZON_STEPS)
        self._vm_ids: list[str] = []
        self._row: dict[str, int] = {}
        self._unseen: NDArray[np.int64] = np.zeros(0, np.int64)
        self._client: NDArray[np.int64] = np.zeros(0, np.int64)
        self._clients: dict[str, int] = {}
        self._app: NDArray[np.int64] = np.zeros(0, np.int64)
        self._apps: dict[str, int] = {}
        self._models: dict[str, int] = {NO_MODEL: 0}
        self._newest_s: int | None = None
        w = len(WINDOWS)
        self._by_vm: F32 = np.zeros((w, 0, N_RESOURCES, GROUPS, MEASURES), np.float32)
        self._by_client: F64 = np.zeros((w, 0, N_RESOURCES, GROUPS, MEASURES))
        self._by_app: F64 = np.zeros((w, 0, N_RESOURCES, GROUPS, MEASURES))
        self._by_model: F64 = np.zeros((w, 1, N_RESOURCES, GROUPS, MEASURES))
        self._by_mode: F64 = np.zeros((w, len(MODES), N_RESOURCES, GROUPS, MEASURES))
        self._by_step: F64 = np.zeros((w, HORIZON_STEPS, N_RESOURCES, MEASURES))

    # ---- what happens

    def issue(self, forecast: ForecastBlock, last: F64, spread: F64) -> None:
        """A forecast was issued; Naive says `last` with standard deviation `spread` a step (float64[v, r]).

        A second forecast of the same issue time replaces the first.
        """
        if self._issued and self._issued[-1].issued_s == forecast.issued_s:
            self._issued.pop()
        levels = np.array(forecast.levels)
        codes = np.array([self._code(self._models, name, MAX_MODELS) for name in (*forecast.models, NO_MODEL)], np.int16)
        known = (forecast.model >= 0) & (forecast.model < len(forecast.models))
        self._issued.append(
            _Issued(
                issued_s=forecast.issued_s,
                vm_ids=forecast.vm_ids,
                levels=levels,
                bounds=np.array([np.abs(levels - bound).argmin() for bound in _BOUNDS]),
                model=codes[np.where(known, forecast.model, -1)],
                steps=[
                    (np.ascontiguousarray(forecast.quantiles[:, :, step], np.float32), forecast.mean[:, :, step].astype(np.float32))
                    for step in range(forecast.quantiles.shape[2])
                ],
                last=last.astype(np.float32),
                spread=spread.astype(np.float32),
            )
        )

    def score(
        self,
        bucket: BucketBlock,
        modes: Mapping[str, Mode],
        clients: Mapping[str, str] | None = None,
        apps: Mapping[str, str] | None = None,
    ) -> BucketLoss:
        """Score every open forecast of this bucket.

        `modes`: host -> mode, unknown hosts count as OFF; `clients`, `apps`: vm -> client, application, "" = none.
        """
        take = self._follow(bucket.vm_ids, clients or {}, apps or {})
        at = np.array([self._row[vm_id] for vm_id in bucket.vm_ids], np.int64)
        n = len(self._vm_ids)
        actual = np.full((n, N_RESOURCES), np.nan)
        actual[at] = bucket.mean
        sums = _Sums(
            by_vm=np.zeros((GROUPS, n, N_RESOURCES, MEASURES)),
            by_model=np.zeros((GROUPS, len(self._models), N_RESOURCES, MEASURES)),
            by_step=np.zeros((HORIZON_STEPS, N_RESOURCES, MEASURES)),
        )
        rows: dict[tuple[str, ...], NDArray[np.int64]] = {}
        for issued in self._issued:
            step, rest = divmod(bucket.start_s - issued.issued_s, BUCKET_S)
            if rest or not 0 <= step < len(issued.steps) or issued.steps[step] is None:
                continue
            row = rows.get(issued.vm_ids)
            if row is None:
                row = rows[issued.vm_ids] = np.array([self._row.get(vm_id, -1) for vm_id in issued.vm_ids], np.int64)
            _score_step(issued, step, actual, row, sums)
        self._fold(bucket, at, modes, sums)
        summed = sums.by_vm.sum(axis=0)
        return BucketLoss(
            start_s=bucket.start_s, take=take, pinball=summed[..., PINBALL], naive=summed[..., NAIVE], count=summed[..., COUNT]
        )

    # ---- what is asked

    def fleet(self, window: str = "day") -> Accuracy:
        """All VMs together, [r]."""
        return _accuracy(self._by_step[_window(window)].sum(axis=0))

    def by_horizon(self, window: str = "day") -> Accuracy:
        """By steps ahead, [12, r]."""
        return _accuracy(self._by_step[_window(window)])

    def by_model(self, window: str = "day") -> dict[str, Accuracy]:
        """By the model that led the forecast, [r] each; models that never led are absent."""
        return self._named(self._models, self._by_model, window)

    def by_client(self, window: str = "day") -> dict[str, Accuracy]:
        """By client, [r] each; "" = VMs of no client. VMs that are gone stay in their client's sums."""
        return self._named(self._clients, self._by_client, window)

    def by_app(self, window: str = "day") -> dict[str, Accuracy]:
        """By application, as by client."""
        return self._named(self._apps, self._by_app, window)

    def by_mode(self, window: str = "day") -> dict[str, Accuracy]:
        """By the mode of the host, [r] each; modes never seen are absent."""
        return self._named({mode.name.lower(): i for i, mode in enumerate(MODES)}, self._by_mode, window)

    def of_vm(self, vm_id: str, window: str = "day") -> Accuracy | None:
        """One VM by part of the horizon (5-10, 15-30, 35-60 minutes), [3, r]; None = not known."""
        row = self._row.get(vm_id)
        if row is None:
            return None
        return _accuracy(np.moveaxis(self._by_vm[_window(window), row].astype(np.float64), 0, 1))

    def losses(self, vm_ids: Sequence[str], window: str = "day") -> F64:
        """Mean pinball loss of each series over all steps in the resource's unit, float64[v, r]; NaN = nothing scored."""
        at = np.array([self._row.get(vm_id, -1) for vm_id in vm_ids], np.int64)
        sums = np.zeros((len(at), N_RESOURCES, MEASURES))
        sums[at >= 0] = self._by_vm[_window(window), at[at >= 0]].sum(axis=2, dtype=np.float64)
        mean: F64 = sums[..., PINBALL] / np.where(sums[..., COUNT] > 0, sums[..., COUNT], np.nan)
        return mean

    def worst(self, n: int, window: str = "day") -> list[WorstSeries]:
        """The n series that lose most to Naive, worst first; series without any score are left out."""
        sums = self._by_vm[_window(window)].sum(axis=2, dtype=np.float64)
        count = sums[..., COUNT]
        # EVIDENCE pairs at par with Naive, and a floor: an idle VM's loss of bytes is no news
        par = EVIDENCE * sums[..., NAIVE] / np.maximum(count, 1e-9) + FLOORS * (count + EVIDENCE)
        ratio = np.where(count > 0, (sums[..., PINBALL] + par) / (sums[..., NAIVE] + par), -np.inf).ravel()
        order = np.argsort(-ratio, kind="stable")[: max(n, 0)]
        found = [(int(i), *divmod(int(i), N_RESOURCES)) for i in order if np.isfinite(ratio[i])]
        return [
            WorstSeries(vm_id=self._vm_ids[row], resource=RESOURCES[r], to_naive=float(ratio[i]), pairs=float(count[row, r]))
            for i, row, r in found
        ]

    def mode_sums(self, mode: Mode) -> F64:
        """Sums since the start on hosts in this mode, float64[r, m]."""
        found: F64 = self._by_mode[-1, MODES.index(mode)].sum(axis=1)
        return found

    def model_sums(self) -> dict[str, F64]:
        """Sums since the start by leading model, float64[r, m] each."""
        since_start: F64 = self._by_model[-1].sum(axis=2)
        return {name: since_start[i] for name, i in self._models.items() if i < len(since_start) and since_start[i, :, COUNT].any()}

    def step_sums(self) -> F64:
        """Sums since the start by steps ahead, float64[12, r, m]."""
        found: F64 = self._by_step[-1].copy()
        return found

    # ---- inside

    def _fold(self, bucket: BucketBlock, at: NDArray[np.int64], modes: Mapping[str, Mode], sums: _Sums) -> None:
        """Let the windows fade by the time that has passed, then add what the bucket brought."""
        passed = 1 if self._newest_s is None else max((bucket.start_s - self._newest_s) // BUCKET_S, 0)
        self._newest_s = max(bucket.start_s, self._newest_s or 0)
        self._by_model = _grown(self._by_model, len(self._models))
        self._by_client = _grown(self._by_client, len(self._clients))
        self._by_app = _grown(self._by_app, len(self._apps))
        fading = [(w, decay) for w, decay in enumerate(DECAYS**passed) if decay != 1.0]
        for view in (self._by_vm, self._by_client, self._by_app, self._by_model, self._by_mode, self._by_step):
            for w, decay in fading:
                view[w] *= decay
        rows = np.ascontiguousarray(np.moveaxis(sums.by_vm, 0, 2))  # [rows, r, g, m]
        self._by_vm += rows.astype(np.float32)
        self._by_model += np.moveaxis(sums.by_model, 0, 2)
        self._by_step += sums.by_step
        for client in np.unique(self._client):
            self._by_client[:, client] += rows[self._client == client].sum(axis=0)
        for app in np.unique(self._app):
            self._by_app[:, app] += rows[self._app == app].sum(axis=0)
        mode_of = np.array([MODES.index(modes.get(host, Mode.OFF)) for host in bucket.host_ids], np.int64)
        for mode in np.unique(mode_of):
            self._by_mode[:, mode] += rows[at[mode_of == mode]].sum(axis=0)

    def _follow(self, vm_ids: Sequence[str], clients: Mapping[str, str], apps: Mapping[str, str]) -> NDArray[np.int64] | None:
        """Make rows for new VMs, drop those unseen for a day; None = nothing moved."""
        self._unseen += 1
        wanted = set(vm_ids)
        self._unseen[[row for vm_id, row in self._row.items() if vm_id in wanted]] = 0
        new = [vm_id for vm_id in vm_ids if vm_id not in self._row]
        take = None
        if new or (self._unseen >= FORGET_AFTER).any():
            kept = np.flatnonzero(self._unseen < FORGET_AFTER)
            take = np.concatenate([kept, np.full(len(new), NEW)]).astype(np.int64)
            self._vm_ids = [self._vm_ids[row] for row in kept] + new
            self._row = {vm_id: row for row, vm_id in enumerate(self._vm_ids)}
            self._by_vm = take_rows(self._by_vm, take, 1, 0.0)
            self._unseen = take_rows(self._unseen, take, 0, 0)
        if take is not None or clients:
            self._client = np.array([self._code(self._clients, clients.get(vm_id, ""), MAX_CLIENTS) for vm_id in self._vm_ids], np.int64)
        if take is not None or apps:
            self._app = np.array([self._code(self._apps, apps.get(vm_id, ""), MAX_CLIENTS) for vm_id in self._vm_ids], np.int64)
        return take

    @staticmethod
    def _code(table: dict[str, int], name: str, most: int) -> int:
        code = table.get(name)
        if code is None:
            name = name if len(table) < most - 1 else OTHERS
            code = table.setdefault(name, len(table))
        return code

    @staticmethod
    def _named(table: Mapping[str, int], sums: F64, window: str) -> dict[str, Accuracy]:
        at = _window(window)
        found = {name: sums[at, i].sum(axis=1) for name, i in table.items() if i < sums.shape[1]}
        return {name: _accuracy(values) for name, values in sorted(found.items()) if values[..., COUNT].any()}


def _score_step(issued: _Issued, step: int, actual: F64, row: NDArray[np.int64], sums: _Sums) -> None:
    said, group = issued.steps[step], GROUP_OF_STEP[step]
    assert said is not None, "checked by the caller"
    z = np.array([NormalDist().inv_cdf(level) for level in issued.levels]) * np.sqrt(step + 1.0)
    into = (sums.by_vm[group], sums.by_model[group], sums.by_step[step])
    score_step(*said, issued.last, issued.spread, z, actual, issued.levels, issued.bounds, row, issued.model, *into)
    issued.steps[step] = None  # a bucket closes once: the step's arrays are not needed again


def _grown(sums: F64, keys: int) -> F64:
    if sums.shape[1] == keys:
        return sums
    return take_rows(sums, np.concatenate([np.arange(sums.shape[1]), np.full(keys - sums.shape[1], NEW)]), 1, 0.0)


def _window(name: str) -> int:
    if name not in WINDOWS:
        raise ValueError(f"window {name!r}: allowed {', '.join(WINDOWS)}")
    return WINDOWS.index(name)


def _accuracy(sums: F64) -> Accuracy:
    count = np.where(sums[..., COUNT] > 0, sums[..., COUNT], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Accuracy(
            pairs=sums[..., COUNT].copy(),
            to_naive=sums[..., PINBALL] / np.where(sums[..., NAIVE] > 0, sums[..., NAIVE], np.nan),
            to_demand=sums[..., PINBALL] / np.where(sums[..., DEMAND] > 0, sums[..., DEMAND], np.nan),
            mae=sums[..., ABSOLUTE] / count,
            bias=sums[..., BIAS] / count,
            coverage_80=sums[..., INSIDE_80] / count,
            coverage_95=sums[..., INSIDE_95] / count,
            above=sums[..., ABOVE] / count,
        )


assert len(GROUP_OF_STEP) == HORIZON_STEPS
