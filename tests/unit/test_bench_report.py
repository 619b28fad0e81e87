"""How every bench ends: its figures in a table and as JSON, and an exit status that says whether a bar is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import Figure, finish

HELD = Figure(name="held", value=1.0, unit="s", bar="<= 2", holds=True)
MISSED = Figure(name="missed", value=3.0, unit="s", bar="<= 2", holds=False)
UNJUDGED = Figure(name="shown", value=9.0, unit="s")


def test_what_holds_or_has_no_bar_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish([HELD, UNJUDGED], tmp_path / "figures.json")
    told = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [(figure["name"], figure["holds"]) for figure in told] == [("held", True), ("shown", None)]
    assert "load average" in capsys.readouterr().out


def test_a_broken_bar_is_published_and_then_fails(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        finish([HELD, MISSED], tmp_path / "figures.json")
    assert ended.value.code == 1
    assert len(json.loads((tmp_path / "figures.json").read_text())["figures"]) == 2
    finish([MISSED], None, strict=False)
