"""Where Ray's sockets and logs go, and that nothing of it stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

ray_session = pytest.importorskip("coordinator.compute.ray_session")


@pytest.mark.parametrize(("length", "linked"), [(1, False), (90, True)])
def test_the_folder_is_below_the_state_or_linked_to_from_there_and_goes_with_the_next_start(
    length: int, linked: bool, request: pytest.FixtureRequest
) -> None:
    root = tempfile.TemporaryDirectory(dir="/tmp")
    request.addfinalizer(root.cleanup)
    state = Path(root.name) / ("s" * length)
    state.mkdir()
    first = ray_session.SessionFolder(state).make()
    (first / "left-behind").touch()
    again = ray_session.SessionFolder(state)
    second = again.make()
    assert (state / "ray").is_symlink() == linked
    assert list(second.iterdir()) == [] and (state / "ray").resolve() == second.resolve()
    assert len(str(second)) + len(ray_session.SESSION_PATH) <= ray_session.SOCKET_PATH_BYTES
    again.remove()
    assert not first.exists() and not second.exists() and list(state.iterdir()) == []


def test_ray_stays_on_loopback() -> None:
    assert ray_session.os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_kernels_are_cached_in_the_state_folder_where_numba_cannot_write_beside_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert ray_session.worker_environment(tmp_path) == ray_session.worker_environment(None) == ray_session.WORKER_ENVIRONMENT
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(ray_session.os, "access", lambda path, mode: asked.append((path, mode)))
    found = ray_session.worker_environment(tmp_path)
    assert asked == [(ray_session.SOURCES, ray_session.os.W_OK)] and ray_session.SOURCES.is_dir()
    assert ray_session.WORKER_ENVIRONMENT.items() < found.items()
    assert Path(found["NUMBA_CACHE_DIR"]).parent == tmp_path and Path(found["NUMBA_CACHE_DIR"]).is_dir()
    assert ray_session.worker_environment(None) == ray_session.WORKER_ENVIRONMENT


def test_workers_inherit_their_environment_and_this_process_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with ray_session._environment(ray_session.WORKER_ENVIRONMENT):
        assert {name: ray_session.os.environ[name] for name in ray_session.WORKER_ENVIRONMENT} == ray_session.WORKER_ENVIRONMENT
    assert ray_session.os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in ray_session.os.environ
