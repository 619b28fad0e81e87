"""A coordinator (no Ray) and two agents at 100 times real time, whose stores a test takes away for a while."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from waiting import until

from coordinator.demo import DemoOptions, Fleet
from coordinator.store.history import ParquetHistory
from shared.units import BUCKET_S, NS_PER_S

OPTIONS = DemoOptions(hours=40, speed=100.0, hosts=2, vms=3)


class World:
    """The processes and how tests talk to them; `changed`: settings of the coordinator."""

    within: Any  # what its state folder lies within

    def __init__(self, fleet: Fleet, program: Callable[..., subprocess.CompletedProcess[str]], changed: dict[str, Any]) -> None:
        self.fleet, self.program = fleet, program
        self.http = httpx.Client(base_url=fleet.url, timeout=20)
        clock = {"real_start_ns": time.time_ns() + 5 * NS_PER_S}
        for name in ("coordinator", *fleet.host_ids):
            settings = tomllib.loads((fleet.folder / f"{name}.toml").read_text())
            settings["clock"] |= clock
            if name == "coordinator":
                settings |= {"ray": False, "cycle": {"stale_host_s": 400}, "forecast": {"challengers": []}} | changed
            fleet.configure(name, settings)
        self.token = self.tidegate("token", "new", "tests").stdout.strip()
        for name in ("coordinator", *fleet.host_ids):
            fleet.start(name)

    def tidegate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.program("coordinator", *arguments, "--config", str(self.fleet.folder / "coordinator.toml"))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        return until(condition, what, 90, check=self.fleet.check, story=self.log)

    def log(self) -> str:
        return (self.fleet.folder / "coordinator.log").read_text()[-3000:]

    def get(self, path: str) -> Any:
        answer = self.http.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def put(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.put(f"/api/v1/{path}", json=body, headers={"Authorization": f"Bearer {self.token}"})

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def spooled(self) -> list[int]:
        return [int(self.fleet.ask(host_id, "status")["spool_frames"]) for host_id in self.fleet.host_ids]

    def whole(self) -> bool:
        """It decides, and no agent holds anything back."""
        return self.http.get("/readyz").status_code == 200 and not any(self.spooled()) and all(host["alive"] for host in self.get("hosts"))

    def complete(self, began_s: float, ended_s: float) -> bool:
        """History knows each VM's demand in each bucket from one moment to the other, of which there are four at least."""
        first, last = (int(at // BUCKET_S * BUCKET_S) for at in (began_s, ended_s))
        vm_ids = [vm["id"] for vm in self.get("vms")["items"]]
        history = ParquetHistory(Path(self.fleet.folder) / "coordinator" / "history")
        means = history.load(vm_ids, last, (last - first) // BUCKET_S + 1).mean[:, 0]
        return bool(means.shape[1] >= 4 and np.isfinite(means).all())


@contextmanager
def running_world(
    program: Callable[..., subprocess.CompletedProcess[str]],
    changed: Callable[[Fleet], dict[str, Any]],
    around: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[World]:
    """Up and deciding. `changed`: settings of the coordinator; `around`: what its state folder lies within."""
    with pytest.MonkeyPatch.context() as patch, Fleet(OPTIONS) as fleet, around(fleet.folder / "coordinator") as within:
        patch.setenv("TIDEGATE_DATA", "/nonexistent")
        fleet.prepare()
        made = World(fleet, program, changed(fleet))
        made.within = within
        with made.http:
            asyncio.run(fleet.until_ready())
            made.until(made.whole, "all agents connected")
            made.until(lambda: made.get("fleet")["cycle"] >= 2 and made.get("receipts"), "decisions")
            yield made
        fleet.stop()
