"""Receipts of placements: the problem as bytes, its digest, and the way back, so that any plan can be solved again bit for bit. Pure.

The bytes are a NumPy archive of the problem's arrays and names. The digest (SHA-256) is over the arrays themselves, not over the archive.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import fields
from typing import Any

import numpy as np

from coordinator.placement.problem import Problem, Rules
from shared.errors import ConfigError

_TEXTS = ("vm_ids", "host_ids", "why_fixed")
_PLAIN = ("moves_max", "broken_price")


def digest_of(problem: Problem) -> str:
    """Hex digest of everything that an engine sees."""
    found = hashlib.sha256()
    for name, value in sorted(_arrays(problem).items()):
        found.update(f"{name} {value.dtype} {value.shape};".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    found.update(_words(problem).encode())
    return found.hexdigest()


def write_problem(problem: Problem) -> bytes:
    """The problem as a compressed archive."""
    out = io.BytesIO()
    np.savez_compressed(out, words=np.frombuffer(_words(problem).encode(), np.uint8), **_arrays(problem))  # type: ignore[arg-type]
    return out.getvalue()


def read_problem(data: bytes) -> Problem:
    """The way back. Raises ConfigError where the bytes hold no problem."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        words = json.loads(arrays.pop("words").tobytes())
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise ConfigError(f"placement receipt: not the archive of a problem: {error}") from None
    rules = {name.removeprefix("rules."): arrays.pop(name) for name in list(arrays) if name.startswith("rules.")}
    parts: dict[str, Any] = {name: tuple(words[name]) for name in _TEXTS}
    parts |= {name: words[name] for name in _PLAIN} | arrays
    return Problem(rules=Rules(names=tuple(words["rules"]), **rules), **parts)


def _arrays(problem: Problem) -> dict[str, np.ndarray[Any, Any]]:
    own = {field.name: getattr(problem, field.name) for field in fields(problem)}
    rules = {f"rules.{field.name}": getattr(problem.rules, field.name) for field in fields(problem.rules)}
    return {name: value for name, value in (own | rules).items() if isinstance(value, np.ndarray)}


def _words(problem: Problem) -> str:
    words: dict[str, object] = {name: list(getattr(problem, name)) for name in _TEXTS}
    words |= {name: getattr(problem, name) for name in _PLAIN}
    words["rules"] = list(problem.rules.names)
    return json.dumps(words, sort_keys=True)
