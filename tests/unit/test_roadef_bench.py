"""bench/roadef on a folder of its own: rows, the bar by set, and a folder that is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from reassign_problems import FIRST, MODEL

from bench.roadef import MEAN_BAR, Row, figures, main, solve, warm_up
from bench.roadef_files import Reference

ROW = Row(
    name="a2_1", processes=1000, machines=100, first=1000, cost=510, known=Reference(best_known=500, s41_300s=520),
    faults=(), proposals=1, seconds=1.0, cpu_seconds=1.0,
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "roadef2012"
    folder.mkdir()
    (folder / "model_a2_7.txt").write_text(MODEL)
    (folder / "assignment_a2_7.txt").write_text(FIRST)
    (folder / "reference.csv").write_text("instance,initial_cost,best_known\na2_7,4200,3000\n")
    return tmp_path


def test_an_instance_is_solved_and_judged(data: Path) -> None:
    warm_up()
    folder = data / "roadef2012"
    row = solve("a2_7", folder / "model_a2_7.txt", folder / "assignment_a2_7.txt", Reference(initial_cost=4200), 10_000, 60.0, 1)
    assert (row.first, row.faults) == (4200, ())
    assert row.cost <= 3900  # one shift, of process 1 to machine 2, already gives that
    wrong = solve("a2_7", folder / "model_a2_7.txt", folder / "assignment_a2_7.txt", Reference(initial_cost=4201), 10_000, 60.0, 1)
    assert wrong.faults == ("the first assignment costs 4200, reference.csv says 4201",)


def test_scores_are_shares_of_the_first_cost() -> None:
    assert (ROW.score, ROW.rival) == (1.0, 2.0)
    assert replace(ROW, known=Reference()).score is None


def test_small_sets_are_judged_by_their_mean_and_large_ones_by_their_median() -> None:
    rows = [replace(ROW, cost=500 + extra) for extra in (0, 0, 30)]
    small, large = (
        figures(rows, quick=False, full=True)[1:],
        figures([replace(r, processes=5000) for r in rows], quick=False, full=True)[1:],
    )
    assert [(f.value, f.holds) for f in small] == [(pytest.approx(1.0), MEAN_BAR >= 1.0)]
    assert [(f.value, f.holds) for f in large] == [(0.0, True)]


def test_shorter_runs_are_shown_but_not_judged_and_faults_always_are() -> None:
    check, found = figures([replace(ROW, faults=("capacity",))], quick=False, full=False)
    assert (check.holds, found.holds) == (False, None)


def test_a_quick_run_writes_its_figures_and_a_missing_folder_is_left_out(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["roadef", "--data", str(data), "--json", str(data / "out.json"), "--seconds", "0.5"])
    main()
    names = [f["name"] for f in json.loads((data / "out.json").read_text())["figures"]]
    assert any(name.startswith("set a2") for name in names)
    monkeypatch.setattr("sys.argv", ["roadef", "--data", str(data / "nowhere")])
    main()
    assert "left out" in capsys.readouterr().out
