"""Compile, or load from numba's cache, every kernel that a tick needs, before the first tick waits for it.

A kernel is compiled once for each combination of types and array layouts it is called with, so the sure way to have them all is to do what
production does, on a small fleet: `one_tick` drives a real engine through its cases (cold start, a window exactly full, one that has slid,
missing buckets). What other packages compile in a tick is named in EXERCISES as "module:function" (no arguments, runs its kernels on
little data with production's types); they are imported only here.

Where the cache lies is the process's business (coordinator/compute/kernel_cache.py). Invariant: in a second process with the same cache and
the same kernels `warm` compiles nothing; its answer counts what numba compiled, wherever in the process that was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Final, NamedTuple

import numpy as np
from numba.core import event

from coordinator.forecast.engine import ForecastOptions
from coordinator.forecast.events.model import Effect, Notice, Occurrences, Scope
from coordinator.forecast.forecaster import Forecaster
from coordinator.model import F32, N_RESOURCES, BucketBlock, HistoryBlock
from shared.units import BUCKET_S

EXERCISES: Final[tuple[str, ...]] = (
    "coordinator.forecast.warm:one_tick",
    "coordinator.forecast.boosting:exercise",
    "coordinator.forecast.levels:exercise",
    "coordinator.forecast.mix:exercise",
    "coordinator.forecast.hours:exercise",
    "coordinator.forecast.network:exercise",
)
_RING: Final = 48  # buckets: the least that ForecastOptions allows
_DAY: Final = 288
_END_S: Final = 1_700_006_400 // BUCKET_S * BUCKET_S


class Compiled(NamedTuple):
    """Names of the functions that numba compiled, in order; loading from the cache does not count."""

    names: list[str]


@contextmanager
def compiling() -> Iterator[Compiled]:
    """Watch numba in this process: `with compiling() as seen: ...; seen.names`."""
    seen = Compiled([])
    listener = _Listener(seen.names)
    event.register("numba:compile", listener)
    try:
        yield seen
    finally:
        event.unregister("numba:compile", listener)


class _Listener(event.Listener):  # type: ignore[misc]  # numba is untyped
    def __init__(self, names: list[str]) -> None:
        self._names = names

    def on_start(self, event: event.Event) -> None:
        self._names.append(str(event.data["dispatcher"].py_func.__qualname__))

    def on_end(self, event: event.Event) -> None:
        """Nothing: a compilation is counted when it starts."""


def warm(exercises: Sequence[str] = EXERCISES) -> tuple[str, ...]:
    """Run the exercises ("module:function"); names of what had to be compiled (empty: all came from the cache).

    Raises ValueError for a name without a colon, ImportError or AttributeError for one that is not there.
    """
    with compiling() as seen:
        for name in exercises:
            _find(name)()
    return tuple(seen.names)


def _find(name: str) -> Callable[[], object]:
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"exercise {name}: allowed are names as package.module:function")
    found: Callable[[], object] = getattr(import_module(module), function)
    return found


def one_tick() -> None:
    """A small fleet through a forecaster's cases. No LightGBM: it is not numba's and costs seconds to import."""
    engine = Forecaster(ForecastOptions(boosting=False, ring=_RING, replay=3))
    names = ("a", "b")
    notice = Notice(id="warm", name="warm", category="warm", scope=Scope(), effect=Effect(added=(1.0,) * N_RESOURCES))
    engine.announce(Occurrences.of([(notice, _END_S + BUCKET_S, _END_S + 4 * BUCKET_S)]))
    wave = 1.0 + np.sin(np.arange(_RING) / 5.0)
    engine.load(_history(names, wave.astype(np.float32)))
    for ahead in (1, 2, _DAY, _DAY + 1):  # 49 buckets, exactly RING + a day: the window is full, and slid
        engine.advance(_bucket(names, _END_S + ahead * BUCKET_S), {})
    engine.advance(_bucket((*names, "new"), _END_S + (_DAY + 2) * BUCKET_S), {})


def _history(names: tuple[str, ...], wave: F32) -> HistoryBlock:
    mean = np.broadcast_to(wave, (len(names), N_RESOURCES, len(wave))).copy()
    nothing = np.zeros_like(mean)
    capacity = np.full((len(names), N_RESOURCES), 100.0, dtype=np.float32)
    return HistoryBlock(vm_ids=names, end_s=_END_S, mean=mean, peak=mean * 2, censored=nothing, capacity=capacity)


def _bucket(names: tuple[str, ...], start_s: int) -> BucketBlock:
    mean = np.ones((len(names), N_RESOURCES))
    return BucketBlock.unlimited(start_s, names, mean, mean * 2)


if __name__ == "__main__":
    sys.stdout.write(f"{len(warm())} kernels compiled\n")
