"""Where numba keeps compiled kernels: one private folder below the state directory, shared by all forecast workers of the machine.

A package is usually installed read-only, and then numba compiles anew in every process (a minute in all), or writes below the home of a
service user that has none. The folder's name carries a digest of all kernel sources and of the versions beneath them, as numba itself only
notices changes of the very file a kernel stands in, not of the kernels that it calls. What the processor can do, numba keeps apart itself.
The cache is made of pickles, which run code when they are read: the folder must belong to this user, and nobody else may write to it.
Source: numba documentation, "Notes on caching".
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
from importlib.metadata import version
from pathlib import Path
from typing import Final

from shared.errors import ConfigError

VARIABLE: Final = "NUMBA_CACHE_DIR"  # read by numba when it is imported
_PREFIX: Final = "kernels-"
_PACKAGE: Final = Path(__file__).parents[1]


def cache_environment(state: Path) -> dict[str, str]:
    """Environment for processes that run kernels; makes the folder, and removes those of other versions.

    An operator's own NUMBA_CACHE_DIR stays in force. Raises ConfigError where the folder is another user's or writable for others.
    """
    if chosen := os.environ.get(VARIABLE):
        return {VARIABLE: chosen}
    folder = state / f"{_PREFIX}{digest()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"state_dir: {folder} has mode {stat.S_IMODE(found.st_mode):o} and owner {found.st_uid}: "
            f"only owner {os.geteuid()} may be able to write there, as compiled code is loaded from it"
        )
    for other in state.glob(f"{_PREFIX}*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)  # a cache: what cannot be removed does no harm
    return {VARIABLE: str(folder)}


def digest(package: Path = _PACKAGE) -> str:
    """Sixteen hexadecimal digits that change with any kernel, with numba, LLVM, NumPy or Python."""
    found = hashlib.sha256()
    for name in ("numba", "llvmlite", "numpy"):
        found.update(f"{name} {version(name)}\n".encode())
    found.update(platform.python_version().encode())
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        if b"njit" in source:
            found.update(f"{path.relative_to(package)}\n".encode() + source)
    return found.hexdigest()[:16]
