"""When and how the coordinator places: one placement at a time, for the newest question; what became of it as metrics and receipts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import structlog

from coordinator.cycle import RequestPlacement
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.ports import Pool
from coordinator.sites import read_site
from coordinator.store.placements import PlacementReceipts
from shared.config import CoordinatorConfig
from shared.metrics import Metrics

log = structlog.get_logger("coordinator")


class Write(Protocol):
    """A store's write, in order behind the others."""

    def __call__(self, function: Callable[[Placed], None], placed: Placed, /) -> None: ...


class PlacementTurns:
    """A question that comes while another is answered waits; a newer one takes its place. Raises ConfigError for a site that is none."""

    def __init__(self, config: CoordinatorConfig, metrics: Metrics, write: Write) -> None:
        self._config = config
        self._metrics = metrics
        self._write = write
        self.site = read_site(config)
        self._receipts = PlacementReceipts(Path(config.state_dir) / "placements", config.placement.receipts)
        self._questions: deque[RequestPlacement] = deque(maxlen=1)
        self._wanted = asyncio.Event()

    def ask(self, question: RequestPlacement) -> None:
        """Place when the placement under way has ended."""
        self._questions.append(question)
        self._wanted.set()

    async def run(self, pool: Pool, stage: Callable[[str], AbstractContextManager[None]], done: Callable[[Placed], None]) -> None:
        """For good; `done` gets every answer."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            request = self.request(self._questions.pop())
            with stage("place"):
                placed = await pool.place(request)
            self._publish(placed)
            done(placed)

    def request(self, question: RequestPlacement) -> PlacementRequest:
        """The question with the site and the settings."""
        wanted = self._config.placement
        return PlacementRequest(
            hosts=question.hosts,
            forecast=question.forecast,
            site=self.site,
            together=question.together,
            asleep=question.asleep,
            forbidden=question.forbidden,
            cooling=question.cooling,
            z=wanted.deviations,
            engine=wanted.engine,
            seed=self._config.seed,
            effort=wanted.effort,
            deadline_s=wanted.deadline_s,
        )

    def _publish(self, placed: Placed) -> None:
        plan, metrics = placed.plan, self._metrics
        metrics.add("tidegate_placements_total", status=plan.status)
        metrics.set("tidegate_placement_moves", len(plan.moves))
        metrics.set("tidegate_placement_cost", sum(plan.before.values()), state="now")
        metrics.set("tidegate_placement_cost", sum(plan.after.values()), state="planned")
        metrics.set("tidegate_placement_gap_ratio", float("nan") if plan.gap is None else plan.gap)
        if plan.status == "hold":
            log.warning("placement holds everything where it is", code=plan.code, detail=plan.detail)
        if self._config.placement.receipts:
            self._write(self._receipts.keep, placed)
