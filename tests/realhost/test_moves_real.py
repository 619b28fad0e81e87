"""A migration that the coordinator orders, between two real libvirtd: placement's move becomes a plan, a wave, a step, and is verified.

Real: decision cycle, execution, both agents, QEMU, tc. Played: the network between them (messages are handed over) and placement. When the
VM has gone, the host that it left is empty and put to sleep: by a program of the operator, which here writes down what it was asked.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forecast_blocks import forecast_block
from placed_moves import placed
from real_host import Guest, RealHost, wait_for
from test_migration import FAST, Agent, migration

from agent import events as ev
from coordinator import cycle as cy
from coordinator.cycle import DecisionCycle
from coordinator.executing import Execution, ExecutionPolicy, StoreMigration, SwitchPower
from coordinator.migration_plan import MigrationPlan, Patience, Phase, Status
from coordinator.model import N_RESOURCES, ForecastBlock
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.planning.order_moves import MovePolicy
from coordinator.planning.sleep import Power, PowerPolicy, PowerTold
from coordinator.power import CommandSwitch
from coordinator.sizing.policy import SizingPolicy
from shared.config import CycleConfig
from shared.frame import decode_block
from shared.messages import Samples
from shared.plan import OutcomeState, StepKind
from shared.units import CPU, HORIZON_STEPS, MEMORY

pytestmark = [pytest.mark.realhost, pytest.mark.slow, pytest.mark.timeout(420)]


class Coordinator:
    """The decision cycle with its agents' messages handed over. `plans`: states of the migration plan that it asked to be stored."""

    def __init__(self, agents: tuple[Agent, Agent], policy: ExecutionPolicy, power: CommandSwitch) -> None:
        self.agents = {agent.host.name: agent for agent in agents}
        self.power = power
        execution = Execution(policy, {name: power.cannot(name) for name in self.agents})
        self.cycle = DecisionCycle(CycleConfig(aggregates=False), SizingPolicy(), 1, execution=execution)
        self.plans: list[MigrationPlan] = []
        self._read = dict.fromkeys(self.agents, 0)
        for name, agent in self.agents.items():
            hello = agent.service.core.hello(time.time_ns(), "test", "libvirt")
            self.handle(cy.AgentSaid(host_id=name, message=hello))
            agent.service.core.standalone = False  # it has no address of a coordinator, but here it has one
            agent.tell(ev.LinkUp(epoch=1, acked=-1))  # again: the inventory follows

    def turn(self) -> None:
        """Hand over what the agents said since, and let time pass."""
        for name, agent in self.agents.items():
            agent.check()
            told = agent.instructions[self._read[name] :]
            self._read[name] += len(told)
            for instruction in told:
                if isinstance(instruction, ev.SendMessage | ev.SpoolFrame):
                    message = instruction.message
                    if isinstance(message, Samples):
                        self.handle(cy.SamplesArrived(host_id=name, samples=decode_block(message.block)))
                    else:
                        self.handle(cy.AgentSaid(host_id=name, message=message))
        self.handle(cy.Tick())

    def handle(self, event: cy.Event) -> None:
        for instruction in self.cycle.handle(event, time.time_ns()):
            match instruction:
                case cy.SendPlan():
                    self.agents[instruction.plan.host_id].tell(ev.PlanArrived(plan=instruction.plan))
                case StoreMigration():
                    self.plans.append(instruction.plan)
                case SwitchPower(order=order):
                    asyncio.run(self.power.wake(order.host_id) if order.wake else self.power.sleep(order.host_id))
                    self.handle(PowerTold(host_id=order.host_id, wake=order.wake))

    def until(self, condition: object, what: str, seconds: float = 90) -> None:
        assert callable(condition)

        def met() -> bool:
            self.turn()
            return bool(condition())

        wait_for(met, what, seconds)


def idle(vm_id: str) -> ForecastBlock:
    mean = np.zeros((1, N_RESOURCES, HORIZON_STEPS), np.float32)
    mean[:, CPU], mean[:, MEMORY] = 50, 100 * 2**20
    return forecast_block((vm_id,), int(time.time()) // 300 * 300, mean)


def test_a_move_that_placement_asks_for_is_carried_out_and_verified(hosts: tuple[RealHost, RealHost], tmp_path: Path) -> None:
    guest: Guest = hosts[0].define_guest("mover", vcpus=1, vcpus_max=1, memory_mib=112, memory_max_mib=112, ip="10.79.0.2/24")
    policy = ExecutionPolicy(
        execute=True,
        always=True,
        moves=MovePolicy(settle_s=5.0),
        patience=Patience(settle_s=5.0, cooldown_s=30.0),
        power=PowerPolicy(spare_hosts=0, empty_s=3.0, repaid_s=0.0),
    )
    slept = tmp_path / "slept"
    note = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    power = CommandSwitch((sys.executable, "-c", note, str(slept), "{host}"), (sys.executable, "-c", "pass"), {})
    made: list[Agent] = []
    try:
        for host, other in (hosts, hosts[::-1]):
            made.append(Agent(host, tmp_path / host.name[-1], migration(other, FAST)))
        source, target = made
        coordinator = Coordinator((source, target), policy, power)
        fleet, book = coordinator.cycle.fleet, lambda: coordinator.cycle.execution.book
        coordinator.until(lambda: guest.vm_id in fleet.vms and fleet.vms[guest.vm_id].strain is not None, "samples of the VM")
        coordinator.cycle.execution.switchable[target.host.name] = "it holds the VM"
        work = guest.work()

        coordinator.cycle.forecast = forecast = idle(guest.vm_id)
        request = PlacementRequest(hosts=fleet.view(coordinator.cycle.bucket, time.time_ns()), forecast=forecast)
        coordinator.handle(cy.PlacementReady(placed=placed(request, (guest.vm_id, source.host.name, target.host.name))))
        assert [plan.status for plan in coordinator.plans] == [Status.RUNNING]
        coordinator.until(lambda: coordinator.plans[-1].over, "the plan to end", 150)

        plan = coordinator.plans[-1]
        assert (plan.status, [each.phase for each in plan.moves]) == (Status.DONE, [Phase.DONE]), plan.moves[0].why
        phases = [each.moves[0].phase for each in coordinator.plans]
        assert phases == sorted(phases, key=[Phase.WAITING, Phase.SENT, Phase.SETTLING, Phase.DONE].index)
        (outcome,) = [each for each in source.outcomes if each.step.kind is StepKind.MIGRATE]
        assert (outcome.state, outcome.step.id) == (OutcomeState.VERIFIED, plan.moves[0].step_id)
        assert fleet.vms[guest.vm_id].host_id == target.host.name
        guest.moved_to(target.host)
        assert guest.work() >= work

        coordinator.until(slept.exists, "the emptied host to be put to sleep", 60)
        assert slept.read_text() == source.host.name
        assert book().of(source.host.name).state is Power.FALLING
        coordinator.handle(cy.HostLost(host_id=source.host.name, why="no heartbeat"))
        coordinator.until(lambda: book().of(source.host.name).state is Power.ASLEEP, "its silence to be taken for sleep")
    finally:
        for agent in made:
            agent.close()
        guest.close()
