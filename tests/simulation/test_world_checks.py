"""The checks of the simulated world can fail: one part of a production core broken at a time, the world reports it.

Every case runs the same small storm, which reports nothing while nothing is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from agent.acting import autonomy
from agent.acting.guard import Guard, Verdict, View
from agent.acting.plans import PlanBook
from agent.acting.reconcile import Recovered
from agent.core import AgentCore
from agent.events import Intent, WriteJournal
from agent.link.shipping import Shipper
from bench.world_storm import storm
from coordinator.demand.buckets import BucketFolder
from coordinator.fleet import Fleet
from coordinator.gateway import sessions
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode

STORMS = 4
SEED = 2
Break = Callable[[pytest.MonkeyPatch], None]


def test_an_unbroken_world_reports_nothing() -> None:
    world = storm(SEED, hosts=5, hours=3)
    assert world.violations == []
    assert sum(len(agent.checks.steps) for agent in world.agents) > 50


def guard_lets_all_pass(patch: pytest.MonkeyPatch) -> None:
    def check(_: Guard, step: Step, view: View, _now_ns: int, **_how: bool) -> Verdict:
        """Only what would break the actuator itself is still refused."""
        free = view.domain is not None and view.in_force is not None and not view.busy and step.kind is not StepKind.VCPUS
        return Verdict(value=step.value) if free else Verdict(value=None, code=RefusalCode.VM_BUSY, detail="", wait_ns=1)

    patch.setattr(Guard, "check", check)


def guard_forgets_commit_limits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_within_commit", lambda *_: None)


def guard_forgets_what_was_of_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_too_soon", lambda *_: None)


def guard_takes_long_strides(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_stride", lambda *_: 2**60)


def guard_forgets_the_hour(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_hourly", lambda *_: None)


def guard_knows_no_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "_budget", lambda *_: None)


def gateway_acknowledges_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions._Stream, "acknowledged", lambda stream: stream.seen)


def gateway_takes_frames_twice(patch: pytest.MonkeyPatch) -> None:
    spooled = sessions.GatewayCore._spooled

    def forgetful(core, event, host_id, message, samples, now_ns):  # type: ignore[no-untyped-def]
        core._stream(core._host(host_id), message.boot_id).seen = -1
        return spooled(core, event, host_id, message, samples, now_ns)

    patch.setattr(sessions.GatewayCore, "_spooled", forgetful)


def agent_believes_the_link_is_up(patch: pytest.MonkeyPatch) -> None:
    def allowance(mode, **known):  # type: ignore[no-untyped-def]
        return autonomy.allowance(mode, **{**known, "link_up": True})

    patch.setattr("agent.core.allowance", allowance)


def agent_acts_in_observe(patch: pytest.MonkeyPatch) -> None:
    def allowance(mode, **known):  # type: ignore[no-untyped-def]
        return replace(autonomy.allowance(mode, **known), shadow=False)

    patch.setattr("agent.core.allowance", allowance)


def agent_takes_old_plans(patch: pytest.MonkeyPatch) -> None:
    admit = PlanBook.admit

    def forgetful(book, plan, _least_epoch, now_ns):  # type: ignore[no-untyped-def]
        book.epoch = book.sequence = 0
        return admit(book, msgspec.structs.replace(plan, deadline_ns=now_ns + 10**12), 0, now_ns)

    patch.setattr(PlanBook, "admit", forgetful)


def agent_submits_without_intent(patch: pytest.MonkeyPatch) -> None:
    handle = AgentCore.handle

    def silent(core, event, now_ns):  # type: ignore[no-untyped-def]
        done = handle(core, event, now_ns)
        return [i for i in done if not (isinstance(i, WriteJournal) and isinstance(i.entry, Intent))]

    patch.setattr(AgentCore, "handle", silent)


def agent_forgets_its_journal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bench.world_agent.reconcile", lambda *_: Recovered())


def agent_keeps_outcomes_to_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shipper, "outcomes", lambda shipper: shipper._outcomes.clear() or [])


def fleet_never_loses_a_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fleet, "lost", lambda *_: None)


def folder_drops_late_samples(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BucketFolder, "grown_starts", lambda _: ())


def folder_counts_repeats(patch: pytest.MonkeyPatch) -> None:
    add = BucketFolder.add

    def twice(folder, host_id, sample):  # type: ignore[no-untyped-def]
        add(folder, host_id, sample)
        add(folder, host_id + "'", sample)

    patch.setattr(BucketFolder, "add", twice)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (guard_lets_all_pass, "floor"),
        (guard_forgets_commit_limits, "the commit limit is"),
        (guard_forgets_what_was_of_late, "times within"),
        (guard_forgets_what_was_of_late, "cut within a minute"),
        (guard_takes_long_strides, "in one step"),
        (guard_forgets_the_hour, "within an hour"),
        (guard_knows_no_budget, "without a plan"),
        (gateway_acknowledges_at_once, "acknowledged and not durable"),
        (gateway_takes_frames_twice, "logged twice"),
        (agent_believes_the_link_is_up, "without a coordinator"),
        (agent_acts_in_observe, "mode observe submitted"),
        (agent_takes_old_plans, "accepted after"),
        (agent_submits_without_intent, "without its intent"),
        (agent_forgets_its_journal, "submitted twice"),
        (agent_keeps_outcomes_to_itself, "has the outcomes []"),
        (fleet_never_loses_a_host, "counts as alive"),
        (folder_drops_late_samples, "samples logged"),
        (folder_counts_repeats, "in the history"),
    ],
)
def test_a_broken_core_is_reported(break_it: Break, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch)
    found = []
    for seed in range(SEED, SEED + STORMS):  # what a storm does depends on what is forecast: not each one meets each weakness
        world = storm(seed, hosts=5, hours=3)
        if any(said in violation for violation in world.violations):
            return
        found.append((world.violations[:5], world.counts))
    pytest.fail(f"nobody said {said!r}: {found}")
