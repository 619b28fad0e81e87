"""Waiting for what processes do: a condition asked again and again, where one that cannot answer yet is no failure until the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from shared.errors import HostError

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    what: str,
    seconds: float,
    *,
    check: Callable[[], None] | None = None,
    story: Callable[[], str] | None = None,
) -> T:
    """The first true result of `condition`. `check` raises when there is no more use in waiting; `story` tells what happened meanwhile."""
    deadline, problem = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        if check is not None:
            check()
        try:
            if result := condition():
                return result
            problem = ""
        except (HostError, OSError, httpx.HTTPError) as error:
            problem = f" ({error})"
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}{problem}{'' if story is None else f'; {story()}'}")
