"""The agent's core by property: bounds, promises and fail-static hold whatever happens, and same events give same instructions."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from obedient_host import ABLE, GUARD, Host, capacity, domain, outcomes, submitted

from agent import events as ev
from agent.acting.levers import bounds, charge, grows
from shared.model import Capabilities, Mode, Policy
from shared.plan import Step, StepKind
from shared.units import GIB, MIB, UNLIMITED

KIND_VALUES = {
    StepKind.VCPUS: st.integers(1, 6),
    StepKind.CPU_QUOTA: st.one_of(st.just(UNLIMITED), st.integers(1, 6000)),
    StepKind.CPU_SHARES: st.integers(1, 300_000),
    StepKind.MEMORY: st.integers(1, 10).map(lambda n: n * 900 * MIB),
    StepKind.NET_RX: st.one_of(st.just(UNLIMITED), st.integers(1, 2 * 10**9)),
    StepKind.NET_TX: st.one_of(st.just(UNLIMITED), st.integers(1, 2 * 10**9)),
    StepKind.VCPUS_ONLINE: st.integers(0, 6),
    StepKind.CPU_PERIOD: st.integers(1, 2_000_000),
    StepKind.VIRTIO_MEM: st.integers(0, 5).map(lambda n: n * GIB),
    StepKind.DIMM: st.integers(0, 40).map(lambda n: n * 100 * MIB),
    StepKind.MEMORY_HIGH: st.one_of(st.just(UNLIMITED), st.integers(1, 8).map(lambda n: n * GIB)),
    StepKind.DISK_BYTES: st.one_of(st.just(UNLIMITED), st.integers(1, 10**9)),
    StepKind.DISK_OPS: st.one_of(st.just(UNLIMITED), st.integers(1, 10**5)),
    StepKind.DISK_WEIGHT: st.integers(0, 2000),
    StepKind.NET_TX_RATE: st.integers(0, 10**9),
    StepKind.MIGRATE: st.just(UNLIMITED),
}
PRESSURES = st.fixed_dictionaries(
    {},
    optional={
        "cpu_used_millicores": st.integers(0, 4000),
        "cpu_throttled_permille": st.sampled_from([0, 500]),
        "memory_used_bytes": st.integers(0, 4).map(lambda n: n * GIB),
        "memory_reading_age_ms": st.sampled_from([0, 60_000]),
        "psi_memory_some_permille": st.sampled_from([0, 400]),
        "net_rx_bits_per_s": st.integers(0, 10**8),
        "net_rx_dropped_per_s": st.sampled_from([0, 10]),
    },
)
VMS = st.sampled_from(["vm-1", "vm-2", "vm-3"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), VMS, PRESSURES),
        st.tuples(st.just("tick"), st.integers(0, 700), st.none()),
        st.tuples(st.just("plan"), st.none(), st.none()),
        st.tuples(st.just("step"), VMS, st.sampled_from(StepKind).flatmap(lambda k: st.tuples(st.just(k), KIND_VALUES[k]))),
        st.tuples(st.just("mode"), st.sampled_from(Mode), st.booleans()),
        st.tuples(st.just("link"), st.booleans(), st.none()),
        st.tuples(st.just("stuck"), st.sets(st.sampled_from(StepKind), max_size=3), st.booleans()),
    ),
    max_size=40,
)


def world(mode: Mode) -> Host:
    policy = Policy(cpu_floor_millicores=300, cpu_ceiling_millicores=3000, memory_floor_bytes=GIB, net_ceiling_bits_per_s=500_000_000)
    limits = capacity(cpu=4000, memory=8 * GIB, net=500_000_000)
    broken = Capabilities(balloon="vfio pins its memory")
    able = domain("vm-1", capabilities=ABLE, virtio_mem_max_bytes=2 * GIB, dimm_max_bytes=2 * GIB)
    host = Host(able, domain("vm-2", policy=policy), domain("vm-3", capabilities=broken), mode=mode, limits=limits)
    host.calm()
    return host


def play(host: Host, actions: list[tuple[str, object, object]]) -> None:
    for number, (what, a, b) in enumerate(actions):
        if what == "sample":
            host.sample(a, **b)  # type: ignore[arg-type]
        elif what == "tick":
            host.tick(a)  # type: ignore[arg-type]
        elif what == "plan":
            host.plan(sequence=1 + number)
        elif what == "step":
            kind, value = b  # type: ignore[misc]
            host.plan(host.step(kind, value, f"s{number}", a), sequence=1 + number)  # type: ignore[arg-type]
        elif what == "mode":
            host.tell(ev.ModePinned(mode=a) if b else ev.ModeOrdered(mode=a))  # type: ignore[arg-type]
        elif what == "link":
            host.tell(ev.LinkUp(epoch=1, acked=-1) if a else ev.LinkDown())
        else:
            host.stuck, host.deaf = a, b  # type: ignore[assignment]


class Watched(Host):
    """Checks every submit against what is in force at that moment."""

    def _answer(self, instruction: ev.Instruction) -> list[ev.Event]:
        if isinstance(instruction, ev.SubmitStep):
            self._check(instruction.step)
        return super()._answer(instruction)

    def _check(self, step: Step) -> None:
        core, now = self.core, self.values[step.vm_id][step.kind]
        assert core.mode.acts
        place = self.log.index(ev.SubmitStep(step=step))
        intent = self.log[place - 1]
        assert isinstance(intent, ev.WriteJournal) and isinstance(intent.entry, ev.Intent) and intent.entry.step == step
        undo = step.reason == "undo"
        if not core.link_up:
            assert step.value == now or grows(now, step.value)
        owner = next(d for d in self.domains if d.vm_id == step.vm_id)
        low, high = bounds(step.kind, owner, GUARD)
        if not undo and step.value != UNLIMITED:
            assert min(low, now) <= step.value <= (10**18 if now == UNLIMITED else max(high, now))
        if step.kind is StepKind.VCPUS:
            assert not undo  # neither an added nor a removed one is taken back
        self._check_promises(step)

    def _check_promises(self, step: Step) -> None:
        after = {vm_id: dict(values) for vm_id, values in self.values.items()}
        after[step.vm_id][step.kind] = step.value
        for kind, limit in (
            (StepKind.CPU_QUOTA, 4000),
            (StepKind.MEMORY, 8 * GIB),
            (StepKind.NET_RX, 500_000_000),
            (StepKind.NET_TX, 500_000_000),
        ):
            sums = [
                sum(charge(kind, values[d.vm_id][kind], d, values[d.vm_id][StepKind.VCPUS]) for d in self.domains)
                for values in (self.values, after)
            ]
            assert sums[1] <= max(limit, sums[0])


def watched(mode: Mode) -> Watched:
    plain = world(mode)
    host = Watched(*plain.domains, mode=mode, limits=plain.core.capacity)
    host.calm()
    return host


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.sampled_from([Mode.REACTIVE, Mode.PREDICTIVE]))
@example([("step", "vm-1", (StepKind.VCPUS, 3)), ("link", False, None), ("tick", 100, None), ("tick", 700, None)], Mode.PREDICTIVE)
def test_bounds_promises_and_fail_static_hold_whatever_happens(actions: list[tuple[str, object, object]], mode: Mode) -> None:
    host = watched(mode)
    play(host, actions)
    host.deaf, host.stuck = False, set()
    host.tell(ev.LinkUp(epoch=1, acked=-1))  # without a coordinator the decay to the owner's defaults is tried for ever
    for _ in range(4):
        host.tick(700)
    assert host.core.in_flight == host.core.waiting == 0
    asked = {i.entry.step.id for i in host.log if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Intent) and not i.entry.undo_of}
    told = [o.step.id for o in outcomes(host.log)]
    assert asked <= set(told) and len(told) == len(set(told))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.sampled_from([Mode.OFF, Mode.OBSERVE]))
def test_observe_and_off_never_submit(actions: list[tuple[str, object, object]], mode: Mode) -> None:
    host = world(mode)
    play(host, [action for action in actions if action[0] != "mode"])
    assert submitted(host.log) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_same_events_same_instructions(actions: list[tuple[str, object, object]]) -> None:
    logs = []
    for _ in range(2):
        host = world(Mode.PREDICTIVE)
        play(host, actions)
        logs.append([repr(i) for i in host.log])
    assert logs[0] == logs[1]
