"""The pause file: while it exists, nothing is changed on this host. The owner's kill switch for when nothing else answers.

Why a file: it works from a rescue shell, by any deployment tool, and before the agent is up. Why a stat and no inotify: half a second
is inside the one second promised, costs nothing, and also sees a folder that is made, mounted or removed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from agent.service.beat import until_next

WATCH_PERIOD_S: Final = 0.5  # real seconds: a pause is in force within 1 s, by whatever clock the agent decides

log = structlog.get_logger("agent")


class PauseFile:
    """Watches one file. `tell(paused)` is called at the first look and whenever that changes."""

    def __init__(self, path: Callable[[], Path], tell: Callable[[bool], None]) -> None:
        """`path` is asked at every look: the setting can change while the agent runs."""
        self._path, self._tell = path, tell
        self._seen: bool | None = None

    def look(self) -> None:
        """One look. A file that cannot be looked for counts as there: in doubt, the host is left alone."""
        path, doubt = self._path(), ""
        try:
            os.stat(path)  # noqa: PTH116  # twice a second for ever
            there = True
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError as error:
            there, doubt = True, error.strerror or str(error)
        if there is not self._seen:
            self._seen = there
            if doubt:
                log.error("pause file cannot be looked for: paused", path=str(path), error=doubt)
            self._tell(there)

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(until_next(WATCH_PERIOD_S, time.monotonic()))
            self.look()
