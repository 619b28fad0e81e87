"""The bench's reader and checker: the challenge's own layout read rightly, the figures of the rules' worked example, bad files named."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reassign_problems import FIRST, MODEL

from bench.roadef_check import judge
from bench.roadef_files import instances, read_instance, references
from shared.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def write(model: str = MODEL, assignment: str = FIRST, name: str = "t_1") -> Path:
        (tmp_path / f"model_{name}.txt.gz").write_bytes(gzip.compress(model.encode()))
        (tmp_path / f"assignment_{name}.txt").write_text(assignment)
        return tmp_path

    return write


def read(folder: Path) -> None:
    (_, model, assignment) = next(instances(folder))
    read_instance(model, assignment)


def test_every_field_is_where_the_layout_says(folder: Callable[..., Path]) -> None:
    (name, model, assignment) = next(instances(folder()))
    problem = read_instance(model, assignment)
    assert name == "t_1"
    assert problem.need.tolist() == [[12, 10], [10, 20], [6, 200]]
    assert problem.capacity[1].tolist() == [10, 240]
    assert problem.safety[2].tolist() == [12, 80]
    assert problem.machine_move_cost[3].tolist() == [5, 4, 2, 0]
    assert problem.transient.tolist() == [0, 1]
    assert problem.location.tolist() == [0, 0, 1, 2]
    assert problem.neighbourhood.tolist() == [0, 0, 1, 1]
    assert problem.process_move_cost.tolist() == [1000, 100, 1]
    assert problem.balance.tolist() == [[0, 1, 20, 10]]
    assert (problem.depends_start.tolist(), problem.depends.tolist()) == ([0, 0, 0, 1], [0])
    assert (problem.process_move_weight, problem.service_move_weight, problem.machine_move_weight) == (1, 10, 100)


def test_the_checker_counts_by_hand(folder: Callable[..., Path]) -> None:
    problem = read_instance(*next(instances(folder()))[1:])
    first = judge(problem, problem.home)
    # machine 0 uses 18 of 16 safe and 210 of 80 safe; machine 3 uses 10 of 8 and 20 of 80
    assert first.load == 100 * 2 + 10 * 130 + 100 * 2
    # balance 20 x left(r0) - left(r1): 20*12-190, 20*10-240 < 0, 20*15-100, 20*0-80 < 0
    assert first.balance == 10 * (50 + 0 + 200 + 0)
    assert (first.process_moves, first.service_moves, first.machine_moves, first.faults) == (0, 0, 0, ())
    moved = judge(problem, np.array([0, 2, 0]))
    assert (moved.process_moves, moved.service_moves, moved.machine_moves) == (100, 10, 200)
    assert moved.faults == ()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ([1, 3, 0], "capacity passed at"),
        ([0, 0, 0], "share a machine"),
        ([0, 1, 0], "too few locations"),
        ([0, 3, 1], None),
    ],
)
def test_the_checker_names_broken_rules(folder: Callable[..., Path], place: list[int], words: str | None) -> None:
    problem = read_instance(*next(instances(folder()))[1:])
    faults = judge(problem, np.array(place)).faults
    assert (faults == ()) if words is None else any(words in fault for fault in faults)


def test_a_moved_process_still_holds_a_transient_resource(folder: Callable[..., Path]) -> None:
    roomy = MODEL.replace("0  10 20  100", "0  10 220  100").replace("1 2  10 100", "1 2  10 300")
    problem = read_instance(*next(instances(folder(roomy)))[1:])
    assert judge(problem, problem.home).faults == ()
    # process 2 leaves machine 0 (400) and process 1 comes: 10 + 220 used there, and 200 still held
    assert judge(problem, np.array([3, 0, 0])).faults != ()
    held = judge(problem, np.array([0, 0, 1])).faults
    assert any("transient" in fault for fault in held)


def test_a_dependency_without_a_process_nearby_is_named(folder: Callable[..., Path]) -> None:
    model = MODEL.replace("3\n0  12 10  1000", "4\n0  12 10  1000").replace("6 200 1\n", "6 200 1\n2 0 0 1\n")
    problem = read_instance(*next(instances(folder(model, "0 2 0 1\n")))[1:])
    assert judge(problem, problem.home).faults == ()
    lonely = model.replace("0  10 20  100", "0 10 20 100")
    problem = read_instance(*next(instances(folder(lonely.replace("2 0\n1 0\n1 1 0", "1 0\n1 0\n1 1 0"), "0 1 0 3\n")))[1:])
    assert any("service 2 on 0" in fault for fault in judge(problem, problem.home).faults)


@pytest.mark.parametrize(
    ("model", "assignment", "words"),
    [
        (MODEL.rsplit("1 10 100", 1)[0], FIRST, "ends within weights of moves"),
        (MODEL + "7", FIRST, "1 numbers too many"),
        (MODEL.replace("400", "4x0"), FIRST, "'4x0'"),
        (MODEL.replace("400", "4e99"), FIRST, "'4e99'"),
        (MODEL.replace("400", "99999999999999999999"), FIRST, "capacity[0, 1] = 9223372036854775807"),
        (MODEL.replace("2\n0 100", "0\n0 100", 1), FIRST, "number of resources is 0"),
        (MODEL.replace("4\n0 0", "4000000\n0 0", 1), FIRST, "number of machines is 4000000"),
        (MODEL.replace("0 0  30 400", "0 0  30 -400"), FIRST, "capacity[0, 1] = -400"),
        (MODEL.replace("1 1 0\n", "1 1 9\n"), FIRST, "depends[0] = 9"),
        (MODEL, "0 4 0", "home[1] = 4"),
        (MODEL, "0 3", "ends within first assignment"),
        (MODEL, "", "ends within first assignment"),
        (MODEL, "0 3 0 0", "assignment_t_1.txt: 1 numbers too many"),
    ],
)
def test_bad_files_are_named(folder: Callable[..., Path], model: str, assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"(model|assignment)_t_1\.txt") as caught:
        read(folder(model, assignment))
    assert words in str(caught.value)


def test_broken_gzip_and_missing_assignment_are_named(folder: Callable[..., Path]) -> None:
    path = folder()
    (path / "model_t_1.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match=r"model_t_1\.txt\.gz: not a readable text"):
        read(path)
    (path / "assignment_t_1.txt").unlink()
    with pytest.raises(ConfigError, match="no assignment_t_1"):
        read(path)


def test_references_are_optional_and_so_is_each_value(folder: Callable[..., Path]) -> None:
    path = folder()
    assert references(path) == {}
    (path / "reference.csv").write_text("instance,initial_cost,lower_bound,s41_300s,best_known\nt_1,10,,,7\n")
    found = references(path)["t_1"]
    assert (found.initial_cost, found.best_known, found.s41_300s) == (10, 7, None)
