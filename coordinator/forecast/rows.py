"""Growing and shrinking arrays along their VM axis, so that every part of the engine follows the fleet by one mechanism.

Pure. `take` lists for each new row the old row it comes from; NEW asks for a fresh one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NEW: Final = -1


def take_rows(array: NDArray[Any], take: NDArray[np.int64], axis: int, fill: float) -> NDArray[Any]:
    """A copy of `array` whose `axis` holds the rows of `take`; NEW rows are `fill`."""
    shape = list(array.shape)
    shape[axis] = len(take)
    out = np.full(shape, fill, dtype=array.dtype)
    old = take >= 0
    target: list[Any] = [slice(None)] * array.ndim
    source: list[Any] = [slice(None)] * array.ndim
    target[axis] = np.flatnonzero(old)
    source[axis] = take[old]
    out[tuple(target)] = array[tuple(source)]
    return out
