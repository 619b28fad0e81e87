"""What execution asks of the process: documents to the registry, orders to the power switch; and its state back after a restart. Wiring.

Writes go to the store's one thread in the order in which they were asked for, and a plan is sent only once it is stored: so a move's state
is durable before the move is on its way. Power orders run beside the event loop's work, one task each, bounded in time by the switch.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import structlog

from coordinator.cycle import Event
from coordinator.executing import Execution, Order, StoreDocument, StoreMigration, SwitchPower
from coordinator.planning.move_warmup import compile_kernels
from coordinator.planning.sleep import Power, PowerOrder, PowerTold
from coordinator.ports import PowerSwitch
from coordinator.store.registry import SqlRegistry
from shared.errors import HostError
from shared.metrics import Metrics
from shared.plan import Outcome

OUTCOMES_READ: Final = 10_000  # newest ones, in which a restart looks for moves that were in flight, lead times and turns

log = structlog.get_logger("coordinator")


class Write(Protocol):
    """A store's write, in order behind the others; `then` when it is durable."""

    def __call__(self, function: Callable[..., None], *arguments: object, then: Callable[[None], None] | None = None) -> None: ...


class MoveKeeper:
    """Carries out StoreMigration, StoreDocument and SwitchPower; `post` takes what the power switch answered."""

    def __init__(
        self, registry: SqlRegistry, power: PowerSwitch | None, write: Write, post: Callable[[Event], None], metrics: Metrics
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._power = power
        self._write = write
        self._post = post
        self._switching: set[asyncio.Task[None]] = set()

    def restore(self, execution: Execution, now_ns: int) -> list[Order]:
        """Give execution its state from before the restart. Takes seconds the first time that anything is to be executed: it compiles."""
        if execution.policy.execute:
            compile_kernels()
        newest = next(iter(self._registry.migrations(1)), None)
        outcomes = [outcome for _, outcome in self.newest_outcomes()]
        return execution.restore(newest, self._registry.documents(), outcomes, now_ns)

    def newest_outcomes(self) -> list[tuple[str, Outcome]]:
        """(host, outcome), oldest first."""
        return self._registry.outcomes(OUTCOMES_READ)[::-1]

    def perform(self, instruction: StoreMigration | StoreDocument | SwitchPower) -> None:
        """One instruction."""
        match instruction:
            case StoreMigration():
                self._write(self._registry.save_migration, instruction.plan)
                if instruction.plan.over:
                    for phase, count in Counter(move.phase for move in instruction.plan.moves).items():
                        self._metrics.add("tidegate_migrations_total", count, phase=phase)
            case StoreDocument():
                self._write(self._registry.save_document, instruction.name, instruction.text)
            case SwitchPower():
                # behind the writes before it: a host is not put to sleep while nothing durable says so
                self._write(_nothing, then=partial(self._begin, instruction.order))

    def look(self, execution: Execution, hosts: list[str]) -> None:
        """Tell execution which of the known hosts can be switched."""
        if self._power is not None:
            execution.switchable = {host_id: self._power.cannot(host_id) for host_id in hosts}
            states = Counter(execution.book.of(host_id).state for host_id in hosts)
            for state in Power:
                self._metrics.set("tidegate_hosts_power", states[state], state=state)

    async def close(self) -> None:
        """Leave what is under way to the switch: an order is not taken back."""
        for task in list(self._switching):
            task.cancel()
        await asyncio.gather(*self._switching, return_exceptions=True)

    def _begin(self, order: PowerOrder, _stored: None) -> None:
        task = asyncio.get_running_loop().create_task(self._switch(order))
        self._switching.add(task)
        task.add_done_callback(self._switching.discard)

    async def _switch(self, order: PowerOrder) -> None:
        assert self._power is not None, "orders come only for hosts that can be switched"
        log.info("power", host=order.host_id, order="wake" if order.wake else "sleep", why=order.why)
        error = None
        try:
            await (self._power.wake(order.host_id) if order.wake else self._power.sleep(order.host_id))
        except HostError as failure:
            error = str(failure)
            log.warning("power order failed", host=order.host_id, error=error)
        self._metrics.add("tidegate_power_orders_total", order="wake" if order.wake else "sleep", outcome="failed" if error else "accepted")
        self._post(PowerTold(host_id=order.host_id, wake=order.wake, error=error))


def _nothing() -> None:
    """What a place in the order of writes costs."""
