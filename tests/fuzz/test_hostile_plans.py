"""A rogue coordinator: ten thousand hostile plans through the core. Nothing reaches the host that the guard does not allow, nothing raises,
and every step that was never begun is answered with its code."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
from obedient_host import ABLE, BEFORE, GUARD, Host, capacity, domain, outcomes, submitted

from agent import events as ev
from agent.acting.ledger import Promise
from agent.acting.levers import bounds, charge, commit_limit
from shared.errors import PeerError
from shared.frame import decode_coordinator, encode
from shared.messages import SendPlan
from shared.model import Mode, Policy
from shared.plan import OutcomeState, Plan, Step, StepKind
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED

PLANS = 10_000
LARGE_EVERY = 500  # one plan in so many has 1,000 steps
EXTREMES = (UNLIMITED, 0, 1, 2, 100, 999, 10**6, 128 * MIB, GIB, 2**40, 2**53 - 1, 2**53)
KINDS = {Promise.CPU: (StepKind.CPU_QUOTA,), Promise.MEMORY: (StepKind.MEMORY, StepKind.VIRTIO_MEM, StepKind.DIMM)}
POLICY = Policy(
    cpu_floor_millicores=300,
    cpu_ceiling_millicores=3000,
    memory_floor_bytes=GIB,
    memory_ceiling_bytes=4 * GIB,
    net_floor_bits_per_s=5_000_000,
    net_ceiling_bits_per_s=500_000_000,
    disk_floor_bytes_per_s=10**7,
    disk_ceiling_bytes_per_s=10**9,
)


class Checked(Host):
    """Checks whatever is submitted against the VM's limits and the host's promises, by the values in force at that moment."""

    def _answer(self, instruction: ev.Instruction) -> list[ev.Event]:
        if isinstance(instruction, ev.SubmitStep):
            self.check(instruction.step)
        return super()._answer(instruction)

    def check(self, step: Step) -> None:
        owner = next(d for d in self.domains if d.vm_id == step.vm_id)
        now = self.values[step.vm_id][step.kind]
        low, high = bounds(step.kind, owner, GUARD)
        assert not owner.policy.excluded and step.kind is not StepKind.MIGRATE
        if step.value != UNLIMITED:
            assert min(low, now) <= step.value <= (2**60 if now == UNLIMITED else max(high, now)), (step, low, high, now)
        if step.kind is StepKind.MEMORY:
            assert abs(step.value - now) * 1000 <= 50 * now + 2 * MIB * 1000, (step, now)
        for promise in Promise:
            sums = []
            for changed in (False, True):
                total = 0
                for vm in self.domains:
                    values = self.values[vm.vm_id] | ({step.kind: step.value} if changed and vm.vm_id == step.vm_id else {})
                    kinds = KINDS.get(promise) or (StepKind(promise.value),)
                    total += sum(charge(kind, values[kind], vm, values[StepKind.VCPUS]) for kind in kinds)
                sums.append(total)
            assert sums[1] <= max(sums[0], commit_limit(promise, self.core.capacity)), (promise, step)


def hostile(host: Host, number: int, dice: random.Random) -> Plan:
    """A plan with something wrong in it, or nothing."""
    now = host.now

    def when() -> int:
        return now + dice.choice((-(10**6), -1, 0, 1, 60, 600, 10**7)) * NS_PER_S

    steps = []
    for n in range(1000 if number % LARGE_EVERY == 0 else dice.randint(0, 4)):
        kind = dice.choice(list(StepKind))
        near = abs(BEFORE.get(kind, 1)) * dice.randint(0, 4) // 2 + dice.randint(0, 9)
        steps.append(
            Step(
                id=dice.choice((f"p{number}-{n}", "same", f"p{max(0, number - 1)}-{n}", f"h1-boot-123-{n}")),
                vm_id=dice.choice(("vm-1", "vm-2", "vm-3", "vm-4", "nobody")),
                kind=kind,
                value=dice.choice(EXTREMES) if dice.random() < 0.6 else near,
                before=dice.choice((None, 0, UNLIMITED, BEFORE.get(kind), 2**53)),
                reason=dice.choice(("forecast_peak", "operator", "undo", "lease_over", "guest_oom", "x" * 256)),
                target=dice.choice(("", "h1", "h2", "elsewhere")),
                not_before_ns=dice.choice((0, when())),
                deadline_ns=when(),
            )
        )
    return Plan(
        host_id="h1" if dice.random() < 0.85 else dice.choice(("h2", "H1", "h1.")),
        epoch=dice.choice((1, 1, 1, 2, number % 7 + 1)),
        sequence=dice.choice((number + 1, number + 1, number + 1, 1, 2**53 if number > PLANS - 5 else number + 2)),
        issued_ns=when(),
        deadline_ns=when(),
        steps=tuple(steps),
    )


def test_ten_thousand_hostile_plans_change_nothing_that_the_guard_does_not_allow() -> None:
    dice = random.Random(20261122)
    able = domain("vm-1", capabilities=ABLE, virtio_mem_max_bytes=2 * GIB, dimm_max_bytes=2 * GIB)
    host = Checked(
        able,
        domain("vm-2", policy=POLICY, capabilities=ABLE),
        domain("vm-3", policy=Policy(excluded=True), capabilities=ABLE),
        domain("vm-4", capabilities=msgspec.structs.replace(ABLE, balloon="vfio", cpu_quota="none", shape_tx="bridge")),
        limits=capacity(cpu=9000, memory=20 * GIB, net=10**9),
    )
    host.calm()
    codes: Counter[str] = Counter()
    sent: set[str] = set()
    begun: set[str] = set()
    told: Counter[str] = Counter()
    done = 0
    for number in range(PLANS):
        plan = hostile(host, number, dice)
        status = host.core.status(host.now)
        if (plan.host_id, plan.epoch, plan.sequence) != ("h1", status.plan_epoch, status.plan_sequence):  # the same plan again is silent
            sent.update(step.id for step in plan.steps)
        message = decode_coordinator(encode(SendPlan(plan=plan)))
        assert isinstance(message, SendPlan)
        host.log.clear()
        host.tell(ev.PlanArrived(plan=message.plan))
        if number % 3 == 0:
            host.sample(advance_s=dice.choice((1, 5, 30)))
            host.tick(0)
        if number % 701 == 0:
            host.tell(ev.ModeOrdered(mode=dice.choice((Mode.PREDICTIVE, Mode.REACTIVE, Mode.OBSERVE, Mode.PREDICTIVE))))
        done += len(submitted(host.log))
        begun |= {i.entry.step.id for i in host.log if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Intent)}
        for outcome in outcomes(host.log):
            told[outcome.step.id] += 1
            if outcome.state is OutcomeState.REFUSED:
                assert outcome.code is not None
                codes[outcome.code] += 1
    host.log.clear()
    for _ in range(5):
        host.tick(700)
    answered = set(told) | {o.step.id for o in outcomes(host.log)}
    assert host.core.in_flight == host.core.waiting == 0
    assert begun <= answered and sent <= answered, sorted((begun | sent) - answered)[:5]
    assert done > 50, "the guard let nothing pass at all: the test shows nothing"
    wanted = {"wrong_host", "epoch_old", "sequence_old", "plan_stale", "step_expired", "step_duplicate", "unknown_vm", "vm_excluded"}
    assert wanted | {"invalid_value", "not_capable", "above_domain_maximum", "mode_forbids"} <= set(codes), codes
    assert all(all(value == UNLIMITED or value >= 0 for value in values.values()) for values in host.values.values())
    assert host.values["vm-3"] == BEFORE


def test_what_is_no_plan_at_all_does_not_come_through_the_door() -> None:
    good = encode(SendPlan(plan=hostile(Host(), 1, random.Random(1))))
    dice = random.Random(2)
    refused = 0
    for _ in range(2000):
        broken = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        try:
            decode_coordinator(bytes(broken))
        except PeerError:
            refused += 1
    assert refused > 100
