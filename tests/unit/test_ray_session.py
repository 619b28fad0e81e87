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
