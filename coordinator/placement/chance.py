"""Chance inside compiled kernels: a state of one word, changed in place, so that the same seed gives the same draws on every machine.

The annealing walk has a faster generator of its own (search/walk.py): it draws some 60 million times a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

U64 = NDArray[np.uint64]


@njit(cache=True, nogil=True, _nrt=False)
def draw(state: U64) -> int:
    """The next 64 random bits, as uint64: xorshift64* (Marsaglia 2003, Vigna 2016). state [1], not 0."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(2685821657736338717)


@njit(cache=True, nogil=True, _nrt=False)
def below(state: U64, n: int) -> int:
    """A whole number in [0, n), n < 2**31."""
    drawn: Any = np.int64(((draw(state) >> np.uint64(33)) * np.uint64(n)) >> np.uint64(31))
    return drawn
