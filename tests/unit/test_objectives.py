"""SLAs as data: what is allowed, and the error budget that sizing takes from them."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.learning.objectives import METRICS, Objective, Sla


def test_the_strictest_objective_is_the_budget() -> None:
    ready = Objective(metric="ready", threshold_permille=20, share_permille=995.0)
    drops = Objective(metric="network_drops", threshold_permille=0, share_permille=999.0)
    assert ready.budget == pytest.approx(0.005)
    assert Sla(id="gold", name="Gold", objectives=(ready, drops)).budget == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("field", "value"),
    [("metric", "latency"), ("threshold_permille", -1), ("threshold_permille", 1001), ("share_permille", 1000), ("period_s", 60)],
)
def test_what_cannot_be_promised(field: str, value: object) -> None:
    good = {"metric": METRICS[0], "threshold_permille": 20, "share_permille": 995}
    assert msgspec.convert(good, Objective).period_s == 2_592_000
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(good | {field: value}, Objective)
