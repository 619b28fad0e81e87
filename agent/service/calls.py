"""Calls that may block (libvirt, netlink), in a bounded pool with a deadline, and the VMs whose call does not come back.

Why: a monitor that hangs must cost one VM, never the agent. A VM whose call is stuck is quarantined: refused at once until the call
comes back, because threads are few. Calls in turn run one after another per VM, so that no submit overtakes its undo.

THREAD_CAP is the one place that says how many threads an agent has at most:

    1  the event loop (main thread)
    1  sampling
    4  acting: levers are short calls; more would only queue inside libvirt
    1  libvirt asked for the domains, besides sampling
    4  libvirt asked for bulk statistics: three may hang at a stuck VM each (STATS_CALLS)
    1  guest agents asked for processes killed for want of memory
    1  libvirt asked for KVM's counters
    1  dirty rates measured on request
    1  libvirt's events
    2  migrations: one that asks how far they are, one that orders
    n  live migrations under way, at most migration.max_outgoing
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import structlog

from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode

ACTING_THREADS: Final = 4
THREAD_CAP: Final = 1 + 1 + ACTING_THREADS + 1 + 4 + 1 + 1 + 1 + 1 + 2  # and migration.max_outgoing
CANCEL_AGAIN_S: Final = 0.2  # real seconds; a cancelled task ends within one turn of the loop
CALL_DEADLINE_S: Final = 20.0  # real seconds until a blocking call counts as stuck

log = structlog.get_logger("agent")


class BoundedCalls:
    """The acting pool. All methods are for the event loop's thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=ACTING_THREADS, thread_name_prefix="acting")
        self._stuck: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}  # by VM: whose call it is

    @property
    def stuck(self) -> frozenset[str]:
        """VMs in quarantine."""
        return frozenset(self._stuck)

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """A call that concerns no single VM; its deadline is the caller's."""
        return self._pool.submit(function, *arguments)

    async def in_turn(self, vm_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """As `of_vm`, after the VM's earlier calls in turn have ended."""
        async with self._turns.setdefault(vm_id, asyncio.Lock()):
            return await self.of_vm(vm_id, function, *arguments)

    async def of_vm(self, vm_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call for one VM. Raises what it raises, Refusal (quarantined), TimeoutError (fate not known) or HostError (not begun)."""
        if vm_id in self._stuck:
            raise Refusal(RefusalCode.QUARANTINED)
        call = self._pool.submit(function, *arguments)
        future = asyncio.wrap_future(call)
        try:
            return await asyncio.wait_for(asyncio.shield(future), CALL_DEADLINE_S)
        except TimeoutError:
            if call.cancel():
                raise HostError("not begun: the calls of other VMs do not come back") from None
            self._stuck.add(vm_id)
            log.warning("VM quarantined: its hypervisor call does not come back", vm=vm_id)
            future.add_done_callback(lambda late: self._release(vm_id, late))
            raise

    def keep(self, vm_ids: Collection[str]) -> None:
        """Forget the turns of VMs that are gone."""
        self._turns = {vm_id: turn for vm_id, turn in self._turns.items() if vm_id in vm_ids or turn.locked()}

    def close(self) -> None:
        """Begin nothing more; what hangs is left hanging."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _release(self, vm_id: str, late: asyncio.Future[Any]) -> None:
        self._stuck.discard(vm_id)
        error = None if late.cancelled() else late.exception()
        log.info("VM's hypervisor call came back", vm=vm_id, error="" if error is None else str(error))


async def cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel until all have ended: Python 3.11's wait_for swallows a cancellation that comes just as its call returns."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)  # all are done: what they died of has been told
