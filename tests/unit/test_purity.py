"""The decision modules stay pure: no clock, no randomness of their own, no I/O, no threads.

import-linter keeps third-party libraries out of them (pyproject.toml); it does not see the standard library, so this test reads the source.
Only what a module itself imports counts: `shared.config` may name a clock, a decision may not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# a package stands for every module in it
PURE = (
    "agent.acting.actuator",
    "agent.acting.autonomy",
    "agent.acting.budgets",
    "agent.acting.conductor",
    "agent.acting.flights",
    "agent.acting.guard",
    "agent.acting.ledger",
    "agent.acting.ordered",
    "agent.acting.levers",
    "agent.acting.migration",
    "agent.acting.ownership",
    "agent.acting.plans",
    "agent.acting.pressure",
    "agent.acting.pursuits",
    "agent.acting.reactive",
    "agent.acting.reconcile",
    "agent.acting.summaries",
    "agent.acting.telling",
    "agent.acting.undoing",
    "agent.core",
    "agent.events",
    "agent.link.shipping",
    "agent.sampling.derive",
    "agent.sampling.detail",
    "agent.sampling.pace",
    "agent.sampling.peaks",
    "coordinator.cycle",
    "coordinator.demand",
    "coordinator.executing",
    "coordinator.fleet",
    "coordinator.forecast",
    "coordinator.gateway.admission",
    "coordinator.gateway.sessions",
    "coordinator.learning",
    "coordinator.model",
    "coordinator.placement.check",
    "coordinator.placement.explain.books",
    "coordinator.placement.explain.plan",
    "coordinator.placement.explain.why_not",
    "coordinator.placement.fleet.build",
    "coordinator.placement.fleet.cells",
    "coordinator.placement.fleet.fleet_problem",
    "coordinator.placement.fleet.guests",
    "coordinator.placement.fleet.rulebook",
    "coordinator.placement.fleet.site",
    "coordinator.placement.fleet.site_file",
    "coordinator.placement.fleet.terms",
    "coordinator.planning",
    "coordinator.settings",
    "coordinator.sizing",
    "coordinator.tenancy",
    "shared.frame",
    "shared.model",
    "shared.plan",
    "shared.refusal",
    "shared.session",
    "shared.units",
)
IMPURE_MODULES = frozenset(
    {
        *("asyncio", "concurrent", "multiprocessing", "queue", "select", "signal", "threading", "time"),
        *("http", "io", "logging", "os", "pathlib", "shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "urllib"),
        *("ctypes", "random", "secrets", "uuid"),
    }
)
IMPURE_LIBRARIES = frozenset(
    {
        *("httpx", "libvirt", "litestar", "psutil", "pyarrow", "pyroute2", "ray", "sqlalchemy"),
        *("structlog", "uvicorn", "websockets"),
    }
)
IMPURE_CALLS = frozenset(("now", "utcnow", "today"))
IMPURE_BUILTINS = frozenset(["open", "print", "input"])


def sources() -> Iterator[Path]:
    for name in PURE:
        place = ROOT.joinpath(*name.split("."))
        yield from sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def impurities(tree: ast.AST) -> Iterator[str]:
    """What in this module reaches outside, one line each."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                imported = [module]
            case _:
                imported = []
        for name in imported:
            if name.split(".")[0] in IMPURE_MODULES | IMPURE_LIBRARIES:
                yield f"line {node.lineno}: imports {name}"
        match node:
            case ast.Call(func=ast.Attribute(attr=attr, value=owner)) if attr in IMPURE_CALLS and "date" in ast.unparse(owner):
                yield f"line {node.lineno}: reads the clock by {ast.unparse(node.func)}"
            case ast.Call(func=ast.Name(id=builtin)) if builtin in IMPURE_BUILTINS:
                yield f"line {node.lineno}: calls {builtin}"
            case ast.Call(func=ast.Attribute(attr="default_rng"), args=[], keywords=[]):
                yield f"line {node.lineno}: unseeded random numbers"
            case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"), attr=attr)) if (
                attr not in ("default_rng", "Generator", "PCG64", "SeedSequence")
            ):
                yield f"line {node.lineno}: numpy's global random state by {attr}"


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_decisions_are_pure(path: Path) -> None:
    found = list(impurities(ast.parse(path.read_text())))
    assert not found, f"{path.relative_to(ROOT)}: {'; '.join(found)}"


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from time import monotonic",
        "import os.path",
        "from asyncio import sleep",
        "import datetime as dt\ndt.datetime.now()",
        "from datetime import date\ndate.today()",
        "import numpy as np\nnp.random.normal()",
        "import numpy as np\nnp.random.default_rng()",
        "def f():\n    import ray",
        "open('x')",
    ],
)
def test_the_test_sees_impurity(text: str) -> None:
    assert list(impurities(ast.parse(text)))


@pytest.mark.parametrize(
    "text", ["import math", "import numpy as np\nnp.random.default_rng(3)", "import datetime\ndatetime.datetime.fromtimestamp(0)"]
)
def test_the_test_lets_pure_code_be(text: str) -> None:
    assert not list(impurities(ast.parse(text)))
