"""A full answer from three quantiles: the shape of another answer, moved to their middle and stretched to their width on each side."""

from __future__ import annotations

import numpy as np
from numba import njit

from coordinator.model import F32, F64, LEVELS

_f = np.float32
_LOW, _MIDDLE, _HIGH = (LEVELS.index(level) for level in (0.1, 0.5, 0.9))
_NARROWEST, _WIDEST = _f(0.05), _f(20.0)  # a width of nothing says nothing of the tails
_NOUGHT, _ONE = _f(0.0), _f(1.0)


@njit(cache=True, error_model="numpy")
def widened(three: F64, shape: F32) -> F32:
    """three float64[3, s, h], the .1, .5 and .9 quantile, ordered; shape float32[s, h, q], monotone -> float32[s, h, q], monotone, >= 0.

    NaN where either is.
    """
    out = np.empty_like(shape)
    for s in range(shape.shape[0]):
        for h in range(shape.shape[1]):
            low, middle, high = _f(three[0, s, h]), _f(three[1, s, h]), _f(three[2, s, h])
            centre = shape[s, h, _MIDDLE]
            down, up = centre - shape[s, h, _LOW], shape[s, h, _HIGH] - centre
            down = min(max((middle - low) / down, _NARROWEST), _WIDEST) if down > _NOUGHT else _ONE
            up = min(max((high - middle) / up, _NARROWEST), _WIDEST) if up > _NOUGHT else _ONE
            for q in range(shape.shape[2]):
                value = middle + (shape[s, h, q] - centre) * (down if q < _MIDDLE else up)
                out[s, h, q] = value if np.isnan(value) else max(value, _NOUGHT)
    return out
