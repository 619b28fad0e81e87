"""The metrics table keeps Prometheus' naming rules; the object refuses what is not in the table."""

from __future__ import annotations

import re

import pytest

from shared.metrics import AGENT_METRICS, COORDINATOR_METRICS, MAX_SERIES, OTHER, Metric, Metrics
from shared.model import Mode

TABLE = (
    Metric("tidegate_things_total", "counter", "Things", ("code",)),
    Metric("tidegate_level_bytes", "gauge", "Level"),
    Metric("tidegate_mode", "gauge", "Mode", ("mode",)),
    Metric("tidegate_wait_seconds", "histogram", "Wait", buckets=(0.1, 1.0)),
)


@pytest.mark.parametrize(("prefix", "table"), [("tidegate_agent_", AGENT_METRICS), ("tidegate_", COORDINATOR_METRICS)])
def test_names_follow_the_rules(prefix: str, table: tuple[Metric, ...]) -> None:
    for row in table:
        assert re.fullmatch(rf"{prefix}[a-z0-9_]+", row.name), row.name
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        assert not re.search(r"_(ms|ns|millicores|percent|permille|minutes|mib|kib)(_|$)", row.name), f"{row.name}: not a base unit"
        assert row.help
        assert not row.help.endswith("."), row.name
        assert bool(row.buckets) == (row.kind == "histogram"), row.name
    assert len({row.name for row in table}) == len(table)


def test_values_are_exported() -> None:
    metrics = Metrics(TABLE)
    metrics.add("tidegate_things_total", code="a")
    metrics.add("tidegate_things_total", 2, code="a")
    metrics.set("tidegate_level_bytes", 12)
    metrics.observe("tidegate_wait_seconds", 0.5)
    metrics.choose("tidegate_mode", "mode", Mode.REACTIVE, Mode)
    text = metrics.render().decode()
    assert 'tidegate_things_total{code="a"} 3.0' in text
    assert "tidegate_level_bytes 12.0" in text
    assert 'tidegate_wait_seconds_bucket{le="1.0"} 1.0' in text
    assert re.findall(r'tidegate_mode\{mode="(\w+)"\} 1.0', text) == ["reactive"]
    assert text.count("tidegate_mode{") == len(Mode)


def test_two_processes_in_one_interpreter_do_not_share() -> None:
    one, two = Metrics(TABLE), Metrics(TABLE)
    one.set("tidegate_level_bytes", 1)
    two.set("tidegate_level_bytes", 2)
    assert b"tidegate_level_bytes 1.0" in one.render()


def test_what_is_not_in_the_table_is_a_bug() -> None:
    metrics = Metrics(TABLE)
    with pytest.raises(KeyError):
        metrics.add("tidegate_unknown_total")
    with pytest.raises(KeyError, match="has labels"):
        metrics.add("tidegate_things_total", kind="a")
    with pytest.raises(AssertionError, match="no gauge"):
        metrics.set("tidegate_things_total", 1, code="a")


def test_series_are_bounded() -> None:
    metrics = Metrics(TABLE)
    for number in range(MAX_SERIES + 50):
        metrics.add("tidegate_things_total", code=str(number))
    metrics.add("tidegate_things_total", code="0")
    text = metrics.render().decode()
    assert text.count("tidegate_things_total{") == MAX_SERIES + 1
    assert f'tidegate_things_total{{code="{OTHER}"}} 50.0' in text
    assert 'tidegate_things_total{code="0"} 2.0' in text
