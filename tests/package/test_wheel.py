"""What a hypervisor gets from `pip install tidegate[agent]`: little, and nothing of the coordinator's weight."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

MAX_PACKAGES = 15
MAX_BYTES = 60_000_000
HEAVY = {"numpy", "pandas", "numba", "scipy", "ray", "ortools", "pyarrow", "lightgbm", "statsforecast", "sqlalchemy", "litestar", "rich"}
PIP = {"pip", "setuptools"}


@pytest.fixture(scope="module")
def packages(clean: Path, run: Callable[..., str]) -> set[str]:
    listed = json.loads(run(clean / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"))
    return {row["name"].lower() for row in listed} - PIP


def test_few_packages(packages: set[str]) -> None:
    assert {"tidegate", "psutil", "pyroute2", "msgspec"} <= packages
    assert len(packages) <= MAX_PACKAGES, sorted(packages)


def test_nothing_heavy(packages: set[str]) -> None:
    assert packages & HEAVY == set()


def test_small_on_disk(clean: Path, packages: set[str]) -> None:
    (site,) = (clean / "lib").glob("python3.*/site-packages")
    own = [path for path in site.rglob("*") if path.is_file() and path.relative_to(site).parts[0].split("-")[0] not in PIP]
    assert sum(path.stat().st_size for path in own) <= MAX_BYTES


def test_the_wheel_holds_code_and_pages_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"agent", "coordinator", "shared"}
    assert any(name.startswith("coordinator/service/static/") for name in names)
    assert "coordinator/store/migrations/env.py" in names
    assert any(name.startswith("coordinator/store/migrations/versions/r0001") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
