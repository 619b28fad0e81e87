"""The core after a restart: what was open is closed by reading it back, and nothing is applied or numbered twice."""

from __future__ import annotations

import pytest
from obedient_host import T0, Host, capacity, one, submitted

from agent import events as ev
from agent.acting.reconcile import Recovered, local_prefix, reconcile
from agent.core import AgentCore
from shared.messages import Outcomes
from shared.model import Mode
from shared.plan import OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB


def journal(host: Host) -> list[object]:
    return [i.entry for i in host.log if isinstance(i, ev.WriteJournal)]


def recovered(host: Host) -> Recovered:
    return reconcile(journal(host), local_prefix("h1", "boot-123456789"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("in_force", "state"), [(3 * GIB, OutcomeState.VERIFIED), (2 * GIB, OutcomeState.FAILED)])
def test_a_restart_closes_what_was_open_by_reading_it_back_and_applies_nothing_twice(in_force: int, state: OutcomeState) -> None:
    before = Host()
    before.calm()
    before.deaf = True
    before.plan(before.step(StepKind.MEMORY, 3 * GIB))
    found = recovered(before)
    assert [i.step.id for i in found.open] == ["s1"] and (found.epoch, found.sequence) == (1, 1)

    after = Host(recovered=found)
    after.values["vm-1"][StepKind.MEMORY] = in_force
    after.log.clear()
    after.core = AgentCore(host_id="h1", boot_id="boot-123456789", capacity=capacity(), ordered=Mode.PREDICTIVE, recovered=found)
    after.tell(ev.Started())
    after.tell(ev.InventoryRead(domains=after.domains))
    after.tell(ev.LinkUp(epoch=1, acked=-1))
    after.tick(30)
    assert submitted(after.log) == [] and one(after.log).state is state
    assert after.plan(after.step(StepKind.MEMORY, 3 * GIB)) == []  # the same plan again
    duplicate = one(after.plan(after.step(StepKind.MEMORY, 4 * GIB), sequence=2))
    assert duplicate.code is RefusalCode.STEP_DUPLICATE


def test_outcomes_that_never_reached_the_spool_are_shipped_after_a_restart() -> None:
    before = Host()
    before.calm()
    before.plan(before.step(StepKind.CPU_QUOTA, 2000))
    found = recovered(before)
    assert [o.step.id for o in found.unshipped] == ["s1"]
    core = AgentCore(host_id="h1", boot_id="boot-123456789", capacity=capacity(), recovered=found, next_sequence=7)
    frame, entry = core.handle(ev.Started(), T0)
    assert isinstance(frame, ev.SpoolFrame) and isinstance(frame.message, Outcomes) and frame.message.outcomes == found.unshipped
    assert entry == ev.WriteJournal(entry=ev.Shipped(sequence=7))
    assert core.handle(ev.Started(), T0) == []


def test_local_ids_go_on_after_a_restart() -> None:
    host = Host(mode=Mode.REACTIVE)
    host.calm()
    host.sample(cpu_used_millicores=990, cpu_throttled_permille=200)
    assert recovered(host).next_local == 2


def test_numbers_that_the_coordinator_holds_are_not_used_again() -> None:
    host = Host()
    host.tell(ev.LinkUp(epoch=2, acked=90))
    assert not [i for i in host.log if isinstance(i, ev.TrimSpool)]
    assert host.core.next_sequence == 91
