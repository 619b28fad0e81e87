"""How Ray is started: closed to the network, quiet, small, and with a folder of its own that goes when the pool closes.

Ray runs on loopback with token authentication and no dashboard: an open Ray port is remote code execution. What joins a cluster of
several machines (`ray_address`) shows the token that the operator set in RAY_AUTH_TOKEN. Import this before `ray`: Ray reads its
environment once. Docs: docs.ray.io "Token authentication", "Environment dependencies".
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# Token authentication on, no reports home; and 127.0.0.1 stays what it is, which Ray elsewhere than on Linux does by itself, and on
# Linux turns into the machine's address on the network.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from coordinator.compute.kernel_cache import cache_environment

__all__ = ["RaySession", "SessionFolder", "ray"]

OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024  # a fleet bucket is a few MB; the store's default takes 30 % of memory
SOCKET_PATH_BYTES: Final = 107  # of sockaddr_un, see unix(7)
SESSION_PATH: Final = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest path that Ray makes below its folder
SOURCES: Final = Path(__file__).parents[1] / "forecast"
THREAD_SETTINGS: Final = (
    "OMP_NUM_THREADS",  # LightGBM and others built on OpenMP
    "OMP_THREAD_LIMIT",  # ... whatever they ask for in a call
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# one thread a worker: the shards are the parallelism, and nested pools on few cores only fight
WORKER_ENVIRONMENT: Final = {**dict.fromkeys(THREAD_SETTINGS, "1"), "RAY_DEDUP_LOGS": "0"}
# Ray runs workers at nice 15: any two busy processes beside them on two cores leave a tick, which has a deadline, some 3 % of a core
LOCAL_ENVIRONMENT: Final = {"RAY_worker_niceness": "0"}


def worker_environment(state: Path | None) -> dict[str, str]:
    """Environment of every actor and task. `state` None: not on this machine alone, no folder of ours is theirs.

    Numba caches beside the sources where it may write there, as in a checkout: a demo then need not compile anew for its new state folder.
    """
    if state is None or os.access(SOURCES, os.W_OK):
        return dict(WORKER_ENVIRONMENT)
    return {**WORKER_ENVIRONMENT, **cache_environment(state)}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """What Ray's processes inherit when it starts, so that no worker's start waits for Ray's agent of environments."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class SessionFolder:
    """`state`/ray, or what this is a link to where the sockets that Ray makes below it would have too long a path."""

    def __init__(self, state: Path) -> None:
        self._path = state / "ray"

    def make(self) -> Path:
        """An empty folder; what a killed process left of an earlier one is gone."""
        self.remove()
        if len(os.fsencode(self._path)) + len(SESSION_PATH) <= SOCKET_PATH_BYTES:
            self._path.mkdir(parents=True)
            return self._path
        elsewhere = Path(tempfile.mkdtemp(prefix="tidegate-ray-"))
        self._path.symlink_to(elsewhere)
        return elsewhere

    def remove(self) -> None:
        """Remove it with all its content, where there is one."""
        shutil.rmtree(self._path.resolve(), ignore_errors=True)
        if self._path.is_symlink():
            self._path.unlink()


class RaySession:
    """A Ray of our own for `workers` workers, or a part in the cluster of `address`. One in a process; a second one shares the first."""

    def __init__(self, workers: int, state: Path | None, address: str | None) -> None:
        """`state` None: a temporary folder. Blocks for some seconds."""
        self._temporary = None if state else tempfile.TemporaryDirectory(prefix="tidegate-")
        self._folder = SessionFolder(state or Path(self._temporary.name if self._temporary else ""))
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            ray.init(address=address, runtime_env={"env_vars": worker_environment(None)}, **quiet)
            return
        with _environment({**worker_environment(state), **LOCAL_ENVIRONMENT}):
            ray.init(
                address="local",  # and not whatever RAY_ADDRESS names
                include_dashboard=False,
                num_cpus=workers + 1,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(self._folder.make()),
                **quiet,
            )

    def close(self) -> None:
        """Leave Ray; a Ray of our own ends."""
        ray.shutdown()
        self._folder.remove()
        if self._temporary is not None:
            self._temporary.cleanup()
