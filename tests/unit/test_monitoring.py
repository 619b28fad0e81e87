"""What deploy/ hands to Prometheus and Grafana: promtool's word, every query over exported names, and the series budget."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from agent.sampling.detail import VmDetail
from agent.service.vm_series import MAX_VMS, render_vms
from coordinator.learning.alerts import AlertState, Severity
from coordinator.learning.objectives import METRICS
from coordinator.planning.sleep import Power
from shared.config_alerts import MAX_RECEIVERS
from shared.metrics import AGENT_METRICS, AGENT_VM_KVM, AGENT_VM_METRICS, COORDINATOR_METRICS, MAX_SERIES, Metric, Metrics
from shared.model import Mode, Priority, VmSample
from shared.plan import OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import RESOURCES

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/tidegate.rules.yml"
DASHBOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
TOPICS = {"fleet", "host", "vm", "forecast", "sla", "coordinator"}
# scraped labels, and what PromQL itself adds
COMMON = {"instance", "job", "le"}
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset", "inf", "nan"}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("not allowed in CI: promtool is not installed (Debian: prometheus)")
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def run(*command: str, text: bytes = b"", folder: Path | None = None) -> str:
    """What the program said; an exit code other than 0 fails the test with its words."""
    done = subprocess.run(command, input=text, capture_output=True, check=False, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode() + done.stderr.decode()


def exported() -> dict[str, set[str]]:
    """Name of each series -> its labels."""
    found: dict[str, set[str]] = {"up": set(COMMON)}
    for row in (*COORDINATOR_METRICS, *AGENT_METRICS, AGENT_VM_KVM):
        for suffix in ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",):
            found[row.name + suffix] = {*row.labels, *COMMON}
    for vm in AGENT_VM_METRICS:
        found[vm.name] = {"vm_id", "name", *COMMON}
    for name in re.findall(r"record: (\S+)", RULES.read_text()):
        found[name] = {label for labels in found.values() for label in labels}
    return found


def rule_queries() -> list[str]:
    """Every expr of the rules, folded ones included."""
    text = RULES.read_text()
    return [" ".join(found.split()).removeprefix(">- ") for found in re.findall(r"expr: ((?:.|\n {10,})+?)\n(?! {10})", text)]


def dashboard_queries(board: dict[str, Any]) -> Iterator[str]:
    """Targets, annotations and variables, with Grafana's own variables filled in."""
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (each["expr"] for each in board["annotations"]["list"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"^label_values\((.*), (\w+)\)$", r"count by (\2) (\1)", variable["definition"])


def filled(query: str) -> str:
    return query.replace("$__rate_interval", "5m").replace("$instance", "a").replace("$vm", "b")


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels matched) of every selector; raises where a label list or a name cannot be told."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    for name, matchers, called in re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})?(\s*\()?", re.sub(r"\[[^\]]*\]", " ", bare)):
        if not called and name not in WORDS and not re.fullmatch(r"[0-9].*", name):
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))


def grouped(query: str) -> set[str]:
    """Labels that the query groups or joins by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", query)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()}


def wrong_in(query: str, known: dict[str, set[str]]) -> list[str]:
    """What the query names and nobody exports."""
    found = list(selectors(query))
    unknown = [name for name, _ in found if name not in known]
    labels = {label for name, _ in found if name in known for label in known[name]}
    unknown += [f"{name}{{{label}}}" for name, used in found if name in known for label in used - known[name]]
    return unknown + sorted(grouped(query) - labels) + ([] if found else [f"no metric in {query}"])


def test_promtool_takes_the_rules_and_their_tests(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "check", "rules", str(RULES))
    assert "SUCCESS" in run(promtool, "test", "rules", "tidegate.test.yml", folder=RULES.parent)


def test_every_alert_rule_has_a_unit_test() -> None:
    tested = set(re.findall(r"alertname: (\w+)\n", (RULES.parent / "tidegate.test.yml").read_text()))
    assert set(re.findall(r"- alert: (\w+)", RULES.read_text())) == tested


def test_rules_ask_only_for_what_is_exported() -> None:
    queries = rule_queries()
    assert len(queries) == len(re.findall(r"- (?:alert|record):", RULES.read_text()))
    assert {query: wrong for query in queries if (wrong := wrong_in(query, exported()))} == {}


def test_the_checker_finds_what_nobody_exports() -> None:
    known = exported()
    assert wrong_in('sum by (reason) (rate(tidegate_hosts{state="alive"}[5m]))', known) == ["reason"]
    assert wrong_in('tidegate_hosts{stat="alive"} > tidegate_nothing', known) == ["tidegate_nothing", "tidegate_hosts{stat}"]
    assert wrong_in("histogram_quantile(0.9, sum by (le) (rate(tidegate_agent_sample_duration_seconds_bucket[5m])))", known) == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_only_for_what_is_exported(path: Path, promtool: str, tmp_path: Path) -> None:
    queries = [filled(query) for query in dashboard_queries(json.loads(path.read_text()))]
    assert queries
    assert {query: wrong for query in queries if (wrong := wrong_in(query, exported()))} == {}
    rules = [{"record": f"tidegate:query:{n}", "expr": query} for n, query in enumerate(queries)]
    checked = tmp_path / "queries.yml"  # JSON is YAML: so promtool's own parser reads every query
    checked.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert "SUCCESS" in run(promtool, "check", "rules", str(checked))


class Grid(msgspec.Struct, forbid_unknown_fields=True):
    x: Annotated[int, Meta(ge=0, le=23)]
    y: Annotated[int, Meta(ge=0)]
    w: Annotated[int, Meta(ge=1, le=24)]
    h: Annotated[int, Meta(ge=1)]


class Source(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Target(msgspec.Struct, forbid_unknown_fields=True):
    datasource: Source
    expr: Annotated[str, Meta(min_length=1)]
    legendFormat: Annotated[str, Meta(min_length=1)]  # noqa: N815  # Grafana's name
    refId: Annotated[str, Meta(pattern="^[A-Z]$")]  # noqa: N815
    range: Literal[True]


class Panel(msgspec.Struct):
    id: Annotated[int, Meta(ge=1)]
    type: Literal["timeseries", "stat", "bargauge", "row"]
    title: Annotated[str, Meta(min_length=1)]
    gridPos: Grid  # noqa: N815
    targets: tuple[Target, ...] = ()


class Variable(msgspec.Struct):
    name: Annotated[str, Meta(pattern=r"^\w+$")]
    type: Literal["datasource", "query"]


class Templating(msgspec.Struct):
    list: tuple[Variable, ...]


class Dashboard(msgspec.Struct):
    uid: Annotated[str, Meta(pattern="^[a-z0-9-]{1,40}$")]  # Grafana allows no longer one
    title: Annotated[str, Meta(min_length=1)]
    schemaVersion: Annotated[int, Meta(ge=36)]  # noqa: N815
    panels: Annotated[tuple[Panel, ...], Meta(min_length=1)]
    templating: Templating


def test_every_topic_has_a_dashboard() -> None:
    assert {path.stem for path in DASHBOARDS} == {f"tidegate-{topic}" for topic in TOPICS}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_what_grafana_reads(path: Path) -> None:
    board = msgspec.json.decode(path.read_bytes(), type=Dashboard)
    assert board.uid == path.stem
    assert len({panel.id for panel in board.panels}) == len(board.panels)
    grids = [panel.gridPos for panel in board.panels]
    cells = [(x, y) for grid in grids for x in range(grid.x, grid.x + grid.w) for y in range(grid.y, grid.y + grid.h)]
    assert len(cells) == len(set(cells)), "panels lie over each other"
    assert all(grid.x + grid.w <= 24 for grid in grids)
    assert all(bool(panel.targets) == (panel.type != "row") for panel in board.panels)
    assert all(len({t.refId for t in panel.targets}) == len(panel.targets) for panel in board.panels)
    used = set(re.findall(r"\$\{?(\w+)", path.read_text())) - {"__rate_interval"}
    assert used == {variable.name for variable in board.templating.list}


# How many values a label can have. What agents name (kinds of steps, collectors) is bounded by the product's own tables.
VALUES = {
    "resource": len(RESOURCES),
    "band": 2,
    "state": max(len(Power), len(AlertState)),
    "code": len(RefusalCode),
    "kind": len(StepKind),
    "outcome": len(OutcomeState),
    "origin": 4,
    "mode": len(Mode),
    "reason": 4,
    "stage": 4,
    "phase": 9,
    "order": 2,
    "challenger": 16,
    "said": 2,
    "status": 6,
    "shadow": 2,
    "cause": 3,
    "severity": len(Severity),
    "receiver": 2 * MAX_RECEIVERS,
    "collector": 12,
    "by": 3,
    "result": 2,
    "method": 7,
    "column": 32,  # of a sample
    "client": MAX_SERIES,  # as many as there are: the bound of a metric holds
    "objective": len(METRICS),
    "priority": len(Priority),
}


def most_series(row: Metric) -> int:
    """Of one metric, buckets and sums included; a counter brings a second series, when it was made."""
    combinations = 1
    assert set(row.labels) <= VALUES.keys(), f"{row.name}: say in VALUES how many values its labels can have"
    for label in row.labels:
        combinations *= VALUES[label]
    each = len(row.buckets) + 4 if row.kind == "histogram" else 2 if row.kind == "counter" else 1
    return min(combinations, MAX_SERIES) * each


def budget(of: str) -> int:
    """What docs/metrics.md promises."""
    found = re.search(rf"^\| {re.escape(of)} \| ([0-9,]+) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert found, f"docs/metrics.md has no series budget of {of}"
    return int(found[1].replace(",", ""))


def series(text: bytes) -> int:
    return sum(not line.startswith(b"#") for line in text.splitlines())


@pytest.mark.parametrize(("of", "table"), [("coordinator", COORDINATOR_METRICS), ("agent, without VMs", AGENT_METRICS)])
def test_the_series_budget_is_kept_and_no_larger_than_needed(of: str, table: tuple[Metric, ...]) -> None:
    most = sum(most_series(row) for row in table)
    assert most <= budget(of) <= 1.5 * most


def test_a_host_of_200_vms_stays_within_the_budget() -> None:
    values: dict[str, Any] = {row.field: 1000 for row in AGENT_VM_METRICS}
    sample = VmSample(**{name: value for name, value in values.items() if name in VmSample.__struct_fields__})
    kvm = {f"counter_{n}": 1 for n in range(40)}  # what a kernel of 2026 has
    detail = VmDetail(**{name: value for name, value in values.items() if name in VmDetail.__struct_fields__}, kvm_per_s=kvm)
    vms = [f"vm-{n:03d}" for n in range(200)]
    found = series(render_vms(dict.fromkeys(vms, sample), dict.fromkeys(vms, detail), {}))
    assert found == 200 * (len(AGENT_VM_METRICS) + 40)
    assert found <= 200 * budget("agent, each VM with series of its own")
    assert budget("VMs of a host with series") == MAX_VMS


def test_the_coordinators_page_is_clean(promtool: str) -> None:
    metrics = Metrics(COORDINATOR_METRICS)
    for row in COORDINATOR_METRICS:
        labels = dict.fromkeys(row.labels, 'x"\n\\')
        match row.kind:
            case "counter":
                metrics.add(row.name, 2, **labels)
            case "gauge":
                metrics.set(row.name, 1.5, **labels)
            case "histogram":
                metrics.observe(row.name, 0.02, **labels)
    assert run(promtool, "check", "metrics", text=metrics.render()) == ""
