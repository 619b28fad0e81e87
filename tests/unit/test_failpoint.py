"""Failpoints: silent unless armed, deadly at the named place, and every name in the code is in the table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared import failpoint

ROOT = Path(__file__).parents[2]


def run(code: str, armed: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, failpoint.VARIABLE: armed}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("armed", "printed", "code"),
    [
        ("", "1\n2\n", 0),
        ("submit.before", "", -signal.SIGKILL),
        ("submit.before:2", "1\n", -signal.SIGKILL),
        ("submit.after", "1\n2\n", 0),
    ],
)
def test_it_kills_at_the_named_place_and_nowhere_else(armed: str, printed: str, code: int) -> None:
    ended = run("from shared.failpoint import hit\nfor n in (1, 2): hit('submit.before'); print(n, flush=True)", armed)
    assert (ended.returncode, ended.stdout) == (code, printed)


@pytest.mark.parametrize("armed", ["nowhere", "submit.before:", "submit.before:0", "submit.before:x"])
def test_a_name_that_is_not_in_the_table_is_refused(armed: str) -> None:
    ended = run("import shared.failpoint", armed)
    assert (ended.returncode == 0) is (armed == "submit.before:")
    assert armed == "submit.before:" or failpoint.VARIABLE in ended.stderr


def test_every_place_in_the_code_is_in_the_table() -> None:
    used = {
        name
        for folder in ("agent", "shared")
        for path in ROOT.joinpath(folder).rglob("*.py")
        for name in re.findall(r"\bhit\(\"([^\"]+)\"\)", path.read_text())
    }
    assert used - {"name"} <= set(failpoint.FAILPOINTS)
