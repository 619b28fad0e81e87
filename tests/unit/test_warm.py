"""Warming: a second process compiles nothing, and the cache lies where workers may write and others may not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import njit

from coordinator.compute import kernel_cache
from coordinator.forecast import warm
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]


def python(code: str, **environment: str) -> list[str]:
    """The lines that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_second_process_compiles_nothing() -> None:
    warm.warm()  # compiled here, where the cache was cold
    said = python(
        "from coordinator.forecast import warm\n"
        "print(*warm.warm(), 'warm')\n"
        "from coordinator.forecast.engine import ForecastEngine, ForecastOptions\n"
        "import numpy as np\n"
        "names = tuple('abcdefg')\n"
        "with warm.compiling() as seen:\n"
        "    engine = ForecastEngine(ForecastOptions(boosting=False, ring=400, replay=3))\n"
        "    engine.load(warm._history(names, np.ones(400, dtype=np.float32)))\n"
        "    for ahead in range(1, 4):\n"
        "        engine.advance(warm._bucket(names, warm._END_S + ahead * 300), {})\n"
        "print(*seen.names, 'ticks')\n"
    )
    assert said == ["warm", "ticks"]


def test_what_is_compiled_is_told() -> None:
    @njit
    def fresh(x: float) -> float:
        return x + 1.0

    with warm.compiling() as seen:
        fresh(1.0)
        fresh(2.0)
        fresh(3)
    assert [name.rsplit(".", 1)[-1] for name in seen.names] == ["fresh", "fresh"]  # one for each type
    fresh(1j)
    assert len(seen.names) == 2  # no longer watched


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("coordinator.forecast.warm", ValueError),
        ("coordinator.forecast.warm:absent", AttributeError),
        ("coordinator.absent:x", ImportError),
    ],
)
def test_an_exercise_that_is_not_there(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        warm.warm([name])


def test_workers_fill_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernel_cache.VARIABLE, raising=False)
    environment = kernel_cache.cache_environment(tmp_path)
    code = (
        "import numpy as np\n"
        "from coordinator.forecast.kernels import naive\n"
        "naive.forecast(np.ones((2, 1)), 3)\n"
        "print(sum(naive.forecast.stats.cache_misses.values()), sum(naive.forecast.stats.cache_hits.values()))\n"
    )
    assert python(code, **environment) == ["1", "0"]
    assert python(code, **environment) == ["0", "1"]
    folder = Path(environment[kernel_cache.VARIABLE])
    assert folder.parent == tmp_path
    assert list(folder.rglob("naive.forecast*.nbi"))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_old_caches_go_and_the_operators_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernel_cache.VARIABLE, raising=False)
    (tmp_path / "kernels-0123").mkdir()
    (tmp_path / "other").mkdir()
    folder = Path(kernel_cache.cache_environment(tmp_path)[kernel_cache.VARIABLE])
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "other"}
    monkeypatch.setenv(kernel_cache.VARIABLE, "/elsewhere")
    assert kernel_cache.cache_environment(tmp_path) == {kernel_cache.VARIABLE: "/elsewhere"}


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernel_cache.VARIABLE, raising=False)
    folder = Path(kernel_cache.cache_environment(tmp_path)[kernel_cache.VARIABLE])
    folder.chmod(0o770)
    with pytest.raises(ConfigError, match="mode 770"):
        kernel_cache.cache_environment(tmp_path)


def test_the_digest_follows_the_kernels_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("@njit\ndef f(): pass\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    before = kernel_cache.digest(tmp_path)
    (tmp_path / "b.py").write_text("x = 2\n")
    assert kernel_cache.digest(tmp_path) == before
    (tmp_path / "a.py").write_text("@njit\ndef f(): return 1\n")
    assert kernel_cache.digest(tmp_path) != before
