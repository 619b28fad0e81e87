"""Files of the ROADEF/EURO challenge 2012: model_NAME.txt and assignment_NAME.txt, plain or gzip, whitespace-separated integers.

Every fault is told with the file, the field and its place: a truncated file, a word that is no integer, a value out of range.
Models of 50,000 processes and 5,000 machines hold 25 million numbers, most of them move costs: they are parsed as one array.
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from coordinator.placement.reassign.engine import I64, Reassignment
from shared.errors import ConfigError

SUFFIXES = (".txt", ".txt.gz")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is known of an instance, None where the folder's reference.csv has no value."""

    initial_cost: int | None = None
    best_known: int | None = None
    s41_300s: int | None = None


def instances(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """(name, model, first assignment) of every instance of a folder, by name; a model without an assignment is a ConfigError."""
    for model in sorted(folder.glob("model_*")):
        suffix = next((s for s in SUFFIXES if model.name.endswith(s)), None)
        if suffix is None:
            continue
        name = model.name.removeprefix("model_").removesuffix(suffix)
        found = [p for s in SUFFIXES if (p := folder / f"assignment_{name}{s}").exists()]
        if not found:
            raise ConfigError(f"{model.name}: no assignment_{name}.txt or .txt.gz beside it")
        yield name, model, found[0]


def references(folder: Path) -> dict[str, Reference]:
    """Reference values by instance; empty where the folder has no reference.csv."""
    path = folder / "reference.csv"
    if not path.exists():
        return {}
    with path.open() as lines:
        return {
            row["instance"]: Reference(**{f.name: int(row[f.name]) if row.get(f.name) else None for f in fields(Reference)})
            for row in csv.DictReader(lines)
        }


def read_instance(model: Path, assignment: Path) -> Reassignment:
    """The problem of one pair of files. Raises ConfigError naming the file, the field and what is wrong."""
    words = Words(model)
    resources = words.count("number of resources", least=1)
    table = words.table("resources", resources, 2)
    machines = words.count("number of machines", least=1)
    hosts = words.table("machines", machines, 2 + 2 * resources + machines)
    spread, start, depends = read_services(words)
    processes = words.count("number of processes", least=1)
    jobs = words.table("processes", processes, 2 + resources)
    balance = words.table("balance objectives", words.count("number of balance objectives"), 4)
    weights = words.table("weights of moves", 1, 3)[0]
    words.end()
    first = Words(assignment)
    home = first.table("first assignment", processes, 1)[:, 0]
    first.end()
    try:
        return Reassignment(
            need=jobs[:, 1 : 1 + resources],
            service=jobs[:, 0],
            home=home,
            process_move_cost=jobs[:, 1 + resources],
            capacity=hosts[:, 2 : 2 + resources],
            safety=hosts[:, 2 + resources : 2 + 2 * resources],
            machine_move_cost=hosts[:, 2 + 2 * resources :],
            neighbourhood=hosts[:, 0],
            location=hosts[:, 1],
            transient=table[:, 0],
            load_weight=table[:, 1],
            balance=balance,
            spread=spread,
            depends_start=start,
            depends=depends,
            process_move_weight=int(weights[0]),
            service_move_weight=int(weights[1]),
            machine_move_weight=int(weights[2]),
        )
    except ConfigError as error:
        raise ConfigError(f"{model.name} and {assignment.name}: {error}") from error


def read_services(words: Words) -> tuple[I64, I64, I64]:
    """(spread [s], start [s + 1], services depended on): the one part whose rows differ in length."""
    services = words.count("number of services", least=1)
    spread = np.zeros(services, np.int64)
    start = np.zeros(services + 1, np.int64)
    depends = []
    for s in range(services):
        spread[s] = words.count(f"spread of service {s}")
        depends.append(words.table(f"dependencies of service {s}", 1, words.count(f"number of dependencies of service {s}"))[0])
        start[s + 1] = start[s] + len(depends[-1])
    return spread, start, np.concatenate(depends)


class Words:
    """The integers of a file, taken from front to back."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.at = 0
        try:
            text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("ascii")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.name}: not a readable text: {error}") from error
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's way to say that a word was no number
            try:
                self.numbers: I64 = np.fromstring(text, np.int64, sep=" ")
            except (DeprecationWarning, ValueError) as error:
                wrong = next((f"word {i} is {w[:20]!r}" for i, w in enumerate(text.split()) if not whole(w)), str(error))
                raise ConfigError(f"{self.name}: {wrong}: allowed integers of 64 bits") from error

    def table(self, field: str, rows: int, columns: int) -> I64:
        """The next rows x columns numbers."""
        taken = self.numbers[self.at : self.at + rows * columns]
        if len(taken) < rows * columns:
            raise ConfigError(
                f"{self.name}: ends within {field}: {len(taken)} of {rows * columns} numbers are there, from the {self.at}th number on"
            )
        self.at += rows * columns
        return taken.reshape(rows, columns)

    def count(self, field: str, least: int = 0) -> int:
        """The next number, at least `least` and at most what a file of this length can hold."""
        value = int(self.table(field, 1, 1)[0, 0])
        if not least <= value <= len(self.numbers):
            raise ConfigError(f"{self.name}: {field} is {value}: allowed {least} to {len(self.numbers)}")
        return value

    def end(self) -> None:
        """Raise ConfigError when numbers are left."""
        if self.at != len(self.numbers):
            raise ConfigError(f"{self.name}: {len(self.numbers) - self.at} numbers too many after the last field")


def whole(word: str) -> bool:
    """Whether a word is an integer of 64 bits."""
    try:
        return -(2**63) <= int(word) < 2**63
    except ValueError:
        return False
