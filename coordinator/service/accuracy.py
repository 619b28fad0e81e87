"""From the sums of forecast errors to the API's AccuracyView and VmAccuracy. Pure. NaN (nothing scored) becomes None."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from coordinator.learning.accuracy import GROUP_OF_STEP, GROUPS, Accuracy, ForecastAccuracy
from coordinator.service.forecasts import known
from coordinator.service.view import AccuracyView, NamedAccuracy, ResourceAccuracy, VmAccuracy, Window, WorstForecast
from shared.units import BUCKET_S, HORIZON_STEPS, RESOURCES

_STEP_MINUTES: Final = BUCKET_S // 60


def accuracy_view(sums: ForecastAccuracy, window: Window, limit: int, name_of: Callable[[str], str]) -> AccuracyView:
    """The fleet, and what it is made of; at most `limit` clients, applications and worst series. `name_of`: vm_id -> its name."""
    ahead = sums.by_horizon(window)
    return AccuracyView(
        window=window,
        fleet=_resources(sums.fleet(window), ()),
        horizons=tuple(NamedAccuracy(name=str((s + 1) * _STEP_MINUTES), resources=_resources(ahead, (s,))) for s in range(HORIZON_STEPS)),
        models=_named(sums.by_model(window)),
        clients=_named(_largest(sums.by_client(window), limit)),
        applications=_named(_largest(sums.by_app(window), limit)),
        worst=tuple(
            WorstForecast(
                vm_id=series.vm_id,
                vm_name=name_of(series.vm_id),
                resource=series.resource,  # type: ignore[arg-type]  # Resource lists RESOURCES
                to_naive=series.to_naive,
                pairs=series.pairs,
            )
            for series in sums.worst(limit, window)
        ),
    )


def vm_accuracy_view(sums: ForecastAccuracy, vm_id: str, window: Window) -> VmAccuracy:
    """One VM; without parts when no forecast of it was scored yet."""
    found = sums.of_vm(vm_id, window)
    parts = () if found is None else tuple(NamedAccuracy(name=_minutes(g), resources=_resources(found, (g,))) for g in range(GROUPS))
    return VmAccuracy(vm_id=vm_id, window=window, horizons=parts)


def _largest(found: Mapping[str, Accuracy], limit: int) -> dict[str, Accuracy]:
    """The `limit` with most pairs."""
    return dict(sorted(found.items(), key=lambda entry: (-entry[1].pairs.sum(), entry[0]))[:limit])


def _minutes(group: int) -> str:
    steps = [step for step in range(HORIZON_STEPS) if GROUP_OF_STEP[step] == group]
    return f"{(steps[0] + 1) * _STEP_MINUTES}-{(steps[-1] + 1) * _STEP_MINUTES}"


def _named(found: Mapping[str, Accuracy]) -> tuple[NamedAccuracy, ...]:
    return tuple(NamedAccuracy(name=name, resources=_resources(accuracy, ())) for name, accuracy in found.items())


def _resources(found: Accuracy, at: tuple[int, ...]) -> tuple[ResourceAccuracy, ...]:
    """Scores [*at, r]."""

    def score(values: np.ndarray, r: int) -> float | None:
        return known(float(values[(*at, r)]))

    return tuple(
        ResourceAccuracy(
            resource=RESOURCES[r],
            pairs=float(found.pairs[(*at, r)]),
            to_naive=score(found.to_naive, r),
            to_demand=score(found.to_demand, r),
            mae=score(found.mae, r),
            bias=score(found.bias, r),
            coverage_80=score(found.coverage_80, r),
            coverage_95=score(found.coverage_95, r),
            above=score(found.above, r),
        )
        for r in range(len(RESOURCES))
    )
