"""The models that a training yields: how they travel, and whether a network that comes is better than the one in use. Pure."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from coordinator.forecast.network import QuantileNetwork, rehearsal
from coordinator.model import F32, F64

HELD_OUT: Final = 36  # buckets, three hours: no training sees them


class Models(msgspec.Struct, frozen=True):
    """What a training yields; None = nothing new."""

    boosting: bytes | None
    network: bytes | None

    def pack(self) -> bytes | None:
        """Portable bytes; None where there is nothing to bring."""
        return msgspec.msgpack.encode(self) if self.boosting or self.network else None


def unpack(models: bytes) -> Models:
    """Raises ValueError when `models` is not what `Models.pack` gives."""
    try:
        return msgspec.msgpack.decode(models, type=Models)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{len(models)} bytes are not trained models: {error}") from error


def promoted(challenger: QuantileNetwork, champion: QuantileNetwork | None, means: F32, peaks: F32, newest_s: int) -> F64 | None:
    """Losses of the challenger, as `network.rehearsal` gives them, on the newest HELD_OUT buckets; None where the champion is better.

    means, peaks float32[n, b], b > HELD_OUT, up to bucket `newest_s`. No champion: the quantiles of the last hours.
    """
    losses = rehearsal(challenger, means, peaks, newest_s, HELD_OUT)
    before = rehearsal(champion, means, peaks, newest_s, HELD_OUT)
    ours, theirs = (np.nansum(each, axis=(0, 2, 3)) for each in (losses, before))
    told = (ours > 0) & (theirs > 0)
    worse = bool(told.any()) and float(np.log(ours[told] / theirs[told]).mean()) > 0.0
    return None if worse else losses
