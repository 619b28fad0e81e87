"""What holds for every test: in CI, a test of a real host, browser or server that is skipped is a failure, with the reason it gave."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# wall time says nothing on a machine that others use too; what has to be fast is measured in CPU time, in bench/
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

REAL = ("realhost", "browser", "server")
HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)  # behind pytest-randomly
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers side by side begin with the slow files: one that came last would keep a core waiting for minutes."""
    if hasattr(config, "workerinput"):
        slow = {item.path: marker.kwargs.get("minutes", 1) for item in items if (marker := item.get_closest_marker("slow"))}
        items.sort(key=lambda item: -slow.get(item.path, 0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if any(item.get_closest_marker(name) for name in REAL) and not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if any(collector.path.is_relative_to(HERE / name) for name in REAL):
        _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"not allowed in CI: {reason}"
