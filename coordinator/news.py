"""What the coordinator does, as live updates: from its instructions to events of the hub. Small documents; who wants more reads the API.

Steps of many clients' VMs are in one plan, so a plan is told of its host and as counts; an outcome is one VM's and told to its client too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from coordinator.cycle import Instruction, SendPlan, StoreOutcomes
from coordinator.fleet import Fleet
from coordinator.learning.alerts import Change
from coordinator.service.streaming import Hub
from shared.metrics import Metrics
from shared.plan import Outcome
from shared.units import NS_PER_S

MAX_OUTCOMES: Final = 200  # told one by one of one report; an agent that was away for hours brings thousands, which /outcomes has


class News:
    """Publishes for one fleet."""

    def __init__(self, hub: Hub, fleet: Fleet) -> None:
        self._hub, self._fleet = hub, fleet
        self._dropped = 0

    def tell(self, instruction: Instruction) -> None:
        """What is about to be carried out, where it is news."""
        match instruction:
            case SendPlan():
                plan = instruction.plan
                kinds = Counter(step.kind.value for step in plan.steps)
                said = {"host_id": plan.host_id, "epoch": plan.epoch, "sequence": plan.sequence, "steps": dict(kinds)}
                self._hub.publish("plan", said | {"issued_s": plan.issued_ns / NS_PER_S})
            case StoreOutcomes():
                for outcome in instruction.outcomes[-MAX_OUTCOMES:]:
                    self._outcome(instruction.host_id, outcome)
            case _:
                pass

    def host(self, host_id: str, alive: bool, reason: str) -> None:
        """A host is heard again, or no longer."""
        self._hub.publish("host", {"host_id": host_id, "alive": alive, "reason": reason})

    def cycle(self, cycles: int, done_ns: int) -> None:
        """A decision cycle ended."""
        alive = sum(host.alive for host in self._fleet.hosts.values())
        said = {"cycle": cycles, "done_s": done_ns / NS_PER_S, "hosts_alive": alive}
        self._hub.publish("fleet", said | {"hosts_silent": len(self._fleet.hosts) - alive, "vms": len(self._fleet.vms)})

    def alerts(self, changes: Sequence[Change]) -> None:
        """Alerts that took a turn."""
        for change in changes[-MAX_OUTCOMES:]:
            alert = change.alert
            said = {"id": alert.id, "rule": alert.rule, "severity": alert.severity, "state": alert.state, "turn": change.turn}
            self._hub.publish("alert", said | {"summary": alert.summary, "labels": alert.labels, "started_s": alert.started_s})

    def measure(self, metrics: Metrics) -> None:
        """How many listen, and how many could not keep up."""
        metrics.set("tidegate_streams", self._hub.readers)
        dropped, self._dropped = self._hub.dropped - self._dropped, self._hub.dropped
        metrics.add("tidegate_streams_dropped_total", dropped)

    def _outcome(self, host_id: str, outcome: Outcome) -> None:
        step, vm = outcome.step, self._fleet.vms.get(outcome.step.vm_id)
        client = (vm.domain.policy.client or None) if vm is not None else None
        said = {"host_id": host_id, "vm_id": step.vm_id, "step_id": step.id, "kind": step.kind, "state": outcome.state}
        self._hub.publish("outcome", said | {"value": outcome.value, "code": outcome.code, "origin": outcome.origin}, client=client)
        if outcome.value is not None:
            self._hub.publish("vm", {"vm_id": step.vm_id, "host_id": host_id, "lever": step.kind, "value": outcome.value}, client=client)
