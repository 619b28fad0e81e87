"""The coordinator as a process: from its configuration to SIGTERM, with the wait for stores that are away at its start."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from coordinator.main import Coordinator
from coordinator.outages import opened
from shared.config import CoordinatorConfig

# A thread that computes keeps the interpreter for this long while the loop waits to go on after each read and write of a socket. Frames of
# 10 kB through a loop beside one such thread: 3,200 a second with Python's 5 ms, 12,300 with this (two cores, shared).
SWITCH_S: Final = 0.0002


async def run_coordinator(config: CoordinatorConfig, started: Callable[[Coordinator], None] | None = None) -> None:
    """Run until SIGTERM or SIGINT, or until a part fails (raises)."""
    sys.setswitchinterval(SWITCH_S)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    coordinator = await opened(partial(Coordinator, config), stop)
    if coordinator is None:
        return
    try:
        await coordinator.start()
        _stop_on_signal(stop)  # again: Ray's workers put a handler of their own in place, which aborts
        if started is not None:
            started(coordinator)
        failure = asyncio.create_task(coordinator.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({failure, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            failure.result()
        failure.cancel()
    finally:
        await coordinator.stop()


def _stop_on_signal(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
