"""Turns of the challengers, beside the forecasts: when one is due, whom it asks, what it costs. Never holds a forecast up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

import structlog

from coordinator.cycle import DecisionCycle
from coordinator.forecast.challengers import Report, Turn
from coordinator.learning.challenging import narrowed, standing_of
from coordinator.model import HistoryBlock
from coordinator.ports import Pool
from coordinator.settings import challenge_schedule
from shared.config import CoordinatorConfig
from shared.metrics import Metrics

log = structlog.get_logger("coordinator")


class ChallengeTurns:
    """One turn at a time; one that lasts until the next is due puts that off."""

    def __init__(self, config: CoordinatorConfig, cycle: DecisionCycle, metrics: Metrics) -> None:
        """Raises ConfigError for a challenger that there is not."""
        self._cycle, self._metrics = cycle, metrics
        self._schedule, self._left_out = challenge_schedule(config)
        self._wanted = asyncio.Event()

    def after_cycle(self) -> None:
        """A cycle has ended: ask for a turn where one is due."""
        if self._schedule.due(self._cycle.cycles):
            self._wanted.set()

    async def run(
        self, pool: Pool, history: Callable[[Sequence[str]], Awaitable[HistoryBlock]], stage: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        """Take turns for ever. `history` loads that of some VMs, `stage` times a part of the cycle."""
        for name, reason in self._left_out.items():
            log.warning("challenger left out", challenger=name, reason=reason)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            vm_ids, turn = self._next()
            if not vm_ids:
                continue
            told = await history(vm_ids)
            with stage("challenge"):
                reports = await pool.challenge(told, turn)
            self._count(reports)

    def _next(self) -> tuple[tuple[str, ...], Turn]:
        fleet = self._cycle.fleet
        vm_ids = sorted(fleet.vms)
        priorities = {vm_id: vm.domain.policy.priority for vm_id, vm in fleet.vms.items()}
        losses = self._cycle.ledger.errors.accuracy.losses(vm_ids)
        return narrowed(self._schedule.turn(standing_of(vm_ids, priorities, fleet.capacity_of(vm_ids), losses)), vm_ids)

    def _count(self, reports: Sequence[Report]) -> None:
        add = self._metrics.add
        add("tidegate_challenge_turns_total")
        for report in reports:
            add("tidegate_challenge_series_total", report.answered, challenger=report.name, said="true")
            add("tidegate_challenge_series_total", report.asked - report.answered, challenger=report.name, said="false")
            add("tidegate_challenge_cpu_seconds_total", report.cpu_s, challenger=report.name)
            add("tidegate_challenge_failures_total", len(report.failures), challenger=report.name)
        for name, failure in self._schedule.heard(reports):
            log.warning("challenger failed", challenger=name, failure=failure)
