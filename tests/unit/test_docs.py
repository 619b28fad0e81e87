"""The reference pages say what the code says: every setting, command, option, metric and refusal code, with its words.

`python tests/unit/test_docs.py` rewrites the generated tables of settings.md, commands.md and metrics.md after a change.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import pytest

import agent.cli
import coordinator.cli
from coordinator.learning.alert_rules import rules_of
from coordinator.operator_cli import texts
from shared.config import AGENT_PREFIX, COORDINATOR_PREFIX, AgentConfig, CoordinatorConfig
from shared.config_alerts import AlertsConfig
from shared.config_file import settings
from shared.metrics import AGENT_METRICS, AGENT_VM_KVM, AGENT_VM_METRICS, COORDINATOR_METRICS, Metric
from shared.refusal import DESCRIPTIONS, RefusalCode

DOCS = Path(__file__).parents[2] / "docs"


def cell(text: str) -> str:
    return text.replace("|", r"\|")


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def settings_table(kind: type) -> str:
    rows = settings(kind)
    return table(
        ("setting", "allowed", "default", "what it is"), ((f"`{r.key}`", r.allowed, f"`{r.default}`", r.description) for r in rows)
    )


def metrics_table(rows: Iterable[Metric]) -> str:
    return table(
        ("metric", "type", "labels", "what it counts"), ((f"`{r.name}`", r.kind, ", ".join(r.labels) or "none", r.help) for r in rows)
    )


def commands_table(program: str, root: click.Group) -> str:
    """One row per command, one per option of it."""
    rows: list[tuple[str, str]] = []

    def visit(name: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for child in sorted(command.commands):
                visit(f"{name} {child}", command.commands[child])
            return
        taken = [part.make_metavar(click.Context(command)) for part in command.params if isinstance(part, click.Argument)]
        rows.append((f"**`{' '.join([name, *taken])}`**", (command.help or "").splitlines()[0]))
        for part in command.params:
            if isinstance(part, click.Option):
                rows.append((f"`{', '.join(part.opts)}`", part.help or ""))

    visit(program, root)
    return table(("command, option", "what it does"), rows)


def rules_table() -> str:
    """Every rule with the bounds of the default settings."""
    return table(
        ("rule", "severity", "holds for", "default bound", "meaning", "what to do"),
        (
            (
                f"`{r.name}`",
                str(r.severity),
                "at once" if r.for_s == 0 else f"{r.for_s / 60:g} min",
                "" if r.threshold is None else f"{r.threshold:g} {r.unit}",
                r.meaning,
                r.action,
            )
            for r in rules_of(AlertsConfig()).values()
        ),
    )


GENERATED: dict[tuple[str, str], Callable[[], str]] = {
    ("settings.md", "agent"): lambda: settings_table(AgentConfig),
    ("settings.md", "coordinator"): lambda: settings_table(CoordinatorConfig),
    ("commands.md", "agent"): lambda: commands_table("tidegate-agent", agent.cli.cli),
    ("commands.md", "coordinator"): lambda: commands_table("tidegate", coordinator.cli.cli),
    ("alerts.md", "rules"): rules_table,
    ("metrics.md", "agent"): lambda: metrics_table(AGENT_METRICS),
    ("metrics.md", "vm"): lambda: metrics_table(
        [*(Metric(row.name, "gauge", row.help, ("vm_id", "name")) for row in AGENT_VM_METRICS), AGENT_VM_KVM]
    ),
    ("metrics.md", "coordinator"): lambda: metrics_table(COORDINATOR_METRICS),
}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- generated: {name} -->\n\n)(.*?)(\n\n<!-- end: {name} -->)", re.DOTALL)


@pytest.mark.parametrize(("page", "name"), list(GENERATED))
def test_generated_tables_are_current(page: str, name: str) -> None:
    found = section(name).search((DOCS / page).read_text())
    assert found, f"docs/{page} has no section {name}"
    assert found[2] == GENERATED[page, name](), "run: python tests/unit/test_docs.py"


def test_the_manual_page_is_current() -> None:
    assert (DOCS / "tidegate.1").read_text() == texts.page(coordinator.cli.cli), "run: python tests/unit/test_docs.py"


@pytest.mark.parametrize("prefix", [AGENT_PREFIX, COORDINATOR_PREFIX])
def test_environment_prefix_is_explained(prefix: str) -> None:
    assert f"`{prefix}_" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize(("kind", "side"), [(AgentConfig, "agent"), (CoordinatorConfig, "coordinator")])
def test_every_setting_has_a_reader(kind: type, side: str) -> None:
    """A documented setting that nothing reads would be a promise without effect."""
    root = DOCS.parent
    sources = [path for folder in (side, "shared") for path in (root / folder).rglob("*.py") if path.stem not in ("config", "config_file")]
    trees: list[ast.AST] = [ast.parse(path.read_text()) for path in sources]
    # what a method of the configuration answers with is read as well; its checks are not
    own = ast.walk(ast.parse((root / "shared" / "config.py").read_text()))
    trees += [node for node in own if isinstance(node, ast.FunctionDef) and not node.name.startswith("__")]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert [row.key for row in settings(kind) if row.key.rpartition(".")[2] not in read] == []


def test_every_refusal_code_is_explained_in_the_same_words() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", (DOCS / "refusals.md").read_text(), re.MULTILINE)
    assert {code: meaning for code, meaning, _ in rows} == {str(code): DESCRIPTIONS[code] for code in RefusalCode}
    assert len(rows) == len(RefusalCode)
    assert all(len(advice) > 10 for _, _, advice in rows)


def test_decisions_are_numbered_and_linked() -> None:
    pages = sorted(path.name for path in (DOCS / "adr").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    index = (DOCS / "adr" / "README.md").read_text()
    assert re.findall(r"\]\((\d{4}[^)]*)\)", index) == pages


def rewrite() -> None:
    """Put the current tables into the pages."""
    for (page, name), build in GENERATED.items():
        path = DOCS / page
        text = build()
        path.write_text(section(name).sub(lambda found, text=text: found[1] + text + found[3], path.read_text()))  # type: ignore[misc]
    (DOCS / "tidegate.1").write_text(texts.page(coordinator.cli.cli))


if __name__ == "__main__":
    rewrite()
