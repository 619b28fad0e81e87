"""Receipts of placements on disk: the problem that was solved and the plan that came of it, the newest few.

Two files each, named by the forecast's time: PLAN.json says what was decided, PROBLEM.npz holds every number that the engine saw. A file
is there whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from coordinator.model import FleetPlacement
from coordinator.placement.explain.plan import Placed
from coordinator.placement.explain.receipts import read_problem, write_problem
from coordinator.placement.problem import I32, Problem
from shared.errors import ConfigError, HostError


class _Said(msgspec.Struct):
    plan: FleetPlacement
    answer: list[int]


class PlacementReceipts:
    """The newest `kept` of one folder."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def keep(self, placed: Placed) -> None:
        """Store one, drop what is too old. Raises HostError when the disk says no."""
        if placed.solved is None or placed.answer is None:
            return
        name = f"{placed.plan.issued_s}"
        said = {"plan": placed.plan, "answer": placed.answer.tolist()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(f"{name}.npz", write_problem(placed.solved))
            self._write(f"{name}.json", msgspec.json.encode(said))
            names = sorted(
                {path.stem for path in self._folder.iterdir() if path.suffix in (".npz", ".json")}, key=lambda text: (len(text), text)
            )
            for old in names[: -self._kept]:
                for suffix in (".npz", ".json"):
                    (self._folder / f"{old}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"placement receipts {self._folder}: {error.strerror}") from error

    @staticmethod
    def read(path: Path) -> tuple[Problem, FleetPlacement, I32]:
        """(problem, plan, what the engine answered) of one receipt, by the path of either of its files. Raises ConfigError."""
        try:
            said = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=_Said)
            data = path.with_suffix(".npz").read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: not a placement's receipt: {error}") from None
        return read_problem(data), said.plan, np.array(said.answer, np.int32)

    def _write(self, name: str, data: bytes) -> None:
        part = self._folder / f"{name}.part"
        part.write_bytes(data)
        part.replace(self._folder / name)
