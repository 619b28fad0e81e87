"""Migrations and power in the simulated world: what libvirtd and the machines do by themselves, whoever watches.

A transfer belongs to the hosts: it goes on when the agent that began it dies, as peer to peer migration does. It takes the VM's memory over
its bandwidth; at its end the VM, its limits and its demand are on the target. A sleeping host has no agent; with VMs on it, sleep would
kill them, so that is a violation. Checked while it runs: no VM is on two hosts or none, nothing is begun twice, nothing leaves for a
sleeping host.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from agent import events as ev
from agent.ports import MigrationProgress
from shared.config import MigrationConfig
from shared.errors import HostError
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_agent import AgentNode

INVENTORY_S = 15.0
FALL_S = 10.0


def allowed(world: World) -> MigrationConfig:
    """Every host may send to every other."""
    return MigrationConfig(
        targets=tuple(f"{spec.host}=sim:///{spec.host}" for spec in world.files), bits_per_s_max=world.settings.move_bits_per_s
    )


@dataclass(kw_only=True)
class Transfer:
    """One VM on its way."""

    source: AgentNode
    target: AgentNode
    step_id: str
    begun_ns: int
    bytes: int
    seconds: float
    incarnation: int
    aborted: bool = False


class Moves:
    """All transfers of a world, and the power of its hosts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._under_way: dict[str, Transfer] = {}
        self.begun: dict[str, int] = {}  # step id -> how often
        self.moved: list[tuple[int, str, str, str]] = []  # ns, VM, from, to
        self.slept: list[tuple[int, str]] = []
        self.woken: list[tuple[int, str]] = []
        self.asleep_s: dict[str, float] = {}
        self._since_ns: dict[str, int] = {}

    def start(self, node: AgentNode, order: ev.StartMigration) -> None:
        """libvirt was told to migrate."""
        world, step = self._world, order.step
        self.begun[step.id] = self.begun.get(step.id, 0) + 1
        if self.begun[step.id] > 1:
            world.violated(f"{node.host_id}: migration {step.id} begun twice")
        target = next((each for each in world.agents if order.uri == f"sim:///{each.host_id}"), None)
        if target is None or step.vm_id in self._under_way or step.vm_id not in node.vm_ids():
            self._answer(node, node.incarnation, step.id, code=RefusalCode.VM_BUSY if target else RefusalCode.TARGET_UNKNOWN)
            return
        memory = int(node.host.allocation(step.vm_id).memory_bytes or 0)
        seconds = 1.0 + memory * 8 / order.bits_per_s
        transfer = Transfer(
            source=node,
            target=target,
            step_id=step.id,
            begun_ns=world.now_ns,
            bytes=memory,
            seconds=seconds,
            incarnation=node.incarnation,
        )
        self._under_way[step.vm_id] = transfer
        world.count("migration_begun")
        world.record("migration", step.vm_id, node.host_id, target.host_id)
        world.after(seconds, partial(self._end, step.vm_id, transfer))

    def watch(self, node: AgentNode, vm_id: str) -> MigrationProgress | None:
        """How far it is; None = nothing of this VM is under way here."""
        transfer = self._under_way.get(vm_id)
        if transfer is None or transfer.source is not node:
            return None
        share = min(1.0, (self._world.now_ns - transfer.begun_ns) / NS_PER_S / transfer.seconds)
        sent = int(transfer.bytes * share)
        return MigrationProgress(
            elapsed_ms=int(1000 * share * transfer.seconds),
            memory_processed_bytes=sent,
            memory_remaining_bytes=transfer.bytes - sent,
            iteration=1,
        )

    def abort(self, vm_id: str) -> None:
        """libvirt was told to give it up."""
        if vm_id in self._under_way:
            self._under_way[vm_id].aborted = True

    def switch(self, node: AgentNode, *, wake: bool) -> None:
        """The machine's power button, or its orderly sleep."""
        world = self._world
        if not wake:
            if node.vm_ids():
                world.violated(f"{node.host_id} was put to sleep with {sorted(node.vm_ids())}")
            world.after(FALL_S, partial(self._fall_asleep, node))
        elif node.asleep:
            world.after(world.settings.wake_s, partial(self._wake, node))

    def _fall_asleep(self, node: AgentNode) -> None:
        if node.asleep:
            return
        if any(transfer.target is node for transfer in self._under_way.values()):
            self._world.violated(f"{node.host_id} fell asleep while a VM was on its way there")
        self._world.count("slept")
        self._world.record("sleep", node.host_id)
        self.slept.append((self._world.now_ns, node.host_id))
        self._since_ns[node.host_id] = self._world.now_ns
        node.fall_asleep()

    def _wake(self, node: AgentNode) -> None:
        if not node.asleep:
            return
        self._world.count("woken")
        self._world.record("wake", node.host_id)
        self.woken.append((self._world.now_ns, node.host_id))
        slept_s = (self._world.now_ns - self._since_ns.pop(node.host_id)) / NS_PER_S
        self.asleep_s[node.host_id] = self.asleep_s.get(node.host_id, 0.0) + slept_s
        node.wake_up()

    def _end(self, vm_id: str, transfer: Transfer) -> None:
        world = self._world
        del self._under_way[vm_id]
        source, target = transfer.source, transfer.target
        fails = world.weather.migration_failures and world.random.random() < world.weather.migration_failures
        if transfer.aborted or fails or target.asleep:
            world.count("migration_failed")
            self._answer(source, transfer.incarnation, transfer.step_id, detail="aborted" if transfer.aborted else "the target went away")
            return
        try:
            moving = source.host.release(vm_id)
        except HostError as error:  # its monitor does not answer: one of the world's faults
            world.count("migration_failed")
            self._answer(source, transfer.incarnation, transfer.step_id, detail=str(error))
            return
        target.host.admit(moving)
        source.checks.pace.forget(vm_id)
        world.count("migration_done")
        self.moved.append((world.now_ns, vm_id, source.host_id, target.host_id))
        world.record("moved", vm_id, source.host_id, target.host_id)
        on = [node.host_id for node in world.agents if vm_id in node.vm_ids()]
        if on != [target.host_id]:
            world.violated(f"{vm_id} is on {on} after its move to {target.host_id}")
        self._answer(source, transfer.incarnation, transfer.step_id, moved=True)
        world.after(1.0, source.read_inventory)
        world.after(1.5, target.read_inventory)

    def _answer(
        self, node: AgentNode, incarnation: int, step_id: str, *, moved: bool = False, code: RefusalCode | None = None, detail: str = ""
    ) -> None:
        """To the thread that waits for it, if its process still lives."""
        if node.incarnation == incarnation:
            ended = ev.MigrationEnded(step_id=step_id, moved=moved, code=code, detail=detail)
            self._world.after(0.01, lambda: node.handle(ended) if node.incarnation == incarnation else None)
