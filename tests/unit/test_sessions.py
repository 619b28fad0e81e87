"""The gateway's core by its instruction lists: identity, de-duplication, acknowledgement, plans, silence."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_host import plain_capacity

from coordinator.gateway import sessions as gs
from coordinator.gateway.sessions import GatewayCore, GatewaySettings
from shared.frame import decode_coordinator, encode, encode_block
from shared.messages import (
    Ack,
    CoordinatorMessage,
    Goodbye,
    Hello,
    Inventory,
    Outcomes,
    Samples,
    SendPlan,
    SetMode,
    SetPause,
    Status,
    Welcome,
)
from shared.model import HostSample, Mode, VmSample
from shared.plan import Plan
from shared.units import NS_PER_S

NOW = 1_700_000_000 * NS_PER_S
CAPACITY = plain_capacity()
HELLO = Hello(host_id="h1", boot_id="b1", agent_version="1", wall_ns=NOW, capacity=CAPACITY, mode=Mode.OBSERVE, mode_pinned=False)
STATUS = Status(wall_ns=NOW, mode=Mode.OBSERVE, mode_pinned=False)


def host_sample(wall_ns: int = NOW) -> HostSample:
    return HostSample(wall_ns=wall_ns, monotonic_ns=1, period_ns=5, vms={"vm1": VmSample(cpu_used_millicores=7)})


def samples(sequence: int, boot_id: str = "b1", wall_ns: int = NOW) -> Samples:
    return Samples(boot_id=boot_id, sequence=sequence, block=encode_block([host_sample(wall_ns)]))


def plan(sequence: int = 1, deadline_ns: int = NOW + NS_PER_S) -> Plan:
    return Plan(host_id="h1", epoch=3, sequence=sequence, issued_ns=NOW, deadline_ns=deadline_ns, steps=())


class Door:
    """A core with the clock and the messages made readable."""

    def __init__(self, **kwargs: object) -> None:
        self.core = GatewayCore(GatewaySettings(epoch=3, stale_host_s=60), **kwargs)  # type: ignore[arg-type]
        self.now = NOW

    def __call__(self, event: object) -> list[gs.Instruction]:
        return self.core.handle(event, self.now)  # type: ignore[arg-type]

    def says(self, conn_id: int, message: object) -> list[gs.Instruction]:
        return self(gs.Received(conn_id, encode(message)))  # type: ignore[arg-type]

    def open(self, conn_id: int = 1, hello: Hello = HELLO) -> list[gs.Instruction]:
        self(gs.Connected(conn_id, hello.host_id))
        return self.says(conn_id, hello)


def replies(instructions: list[gs.Instruction]) -> list[tuple[int, CoordinatorMessage]]:
    return [(one.conn_id, decode_coordinator(one.frame)) for one in instructions if isinstance(one, gs.Reply)]


def test_hello_is_answered_and_delivered() -> None:
    door = Door(acked={("h1", "b1"): 41, ("h2", "b1"): 7}, modes={"h1": Mode.REACTIVE})
    out = door.open()
    assert replies(out) == [(1, Welcome(epoch=3, wall_ns=NOW, acked=41, mode=Mode.REACTIVE, paused=False))]
    assert out[1:] == [gs.HostUp("h1"), gs.Deliver("h1", HELLO)]
    assert door.core.connected() == {"h1": HELLO}


def test_a_frame_is_logged_then_delivered_and_acknowledged_once_durable() -> None:
    door = Door()
    door.open()
    message = samples(0)
    assert door.says(1, message) == [gs.AppendWal("h1", "b1", 0, encode(message)), gs.Deliver("h1", message, (host_sample(),))]
    assert replies(door(gs.Durable({("h1", "b1"): 0}))) == [(1, Ack(boot_id="b1", sequence=0))]
    outcomes = Outcomes(boot_id="b1", sequence=1, outcomes=())
    assert door.says(1, outcomes) == [gs.AppendWal("h1", "b1", 1, encode(outcomes)), gs.Deliver("h1", outcomes)]


def test_a_duplicate_is_acknowledged_as_far_as_durable_and_not_delivered() -> None:
    door = Door()
    door.open()
    door.says(1, samples(0))
    assert door.says(1, samples(0)) == []  # nothing durable yet: silence, not a lie
    door(gs.Durable({("h1", "b1"): 0}))
    door.says(1, samples(1))
    assert replies(door.says(1, samples(1))) == [(1, Ack(boot_id="b1", sequence=0))]
    assert door.core.counters["duplicates"] == 2


def test_gaps_are_accepted_and_counted() -> None:
    door = Door()
    door.open()
    door.says(1, samples(10))
    assert door.core.counters["gaps"] == 0  # where a boot's numbers start for us is not known
    assert len(door.says(1, samples(14))) == 2
    assert door.core.counters["gaps"] == 3


def test_each_boot_is_a_stream_of_its_own() -> None:
    door = Door(acked={("h1", "b1"): 100})
    door.open(hello=msgspec.structs.replace(HELLO, boot_id="b2"))
    assert isinstance(door.says(1, samples(0, "b2"))[0], gs.AppendWal)
    assert replies(door.says(1, samples(99, "b1"))) == [(1, Ack(boot_id="b1", sequence=100))]
    assert isinstance(door.says(1, samples(101, "b1"))[0], gs.AppendWal)


def test_remembered_boots_are_bounded() -> None:
    door = Door()
    door.open()
    for boot in range(100):
        door.says(1, samples(0, f"boot{boot}"))
    assert len(door.core._hosts["h1"].streams) == gs.MAX_BOOTS_PER_HOST
    assert door(gs.Durable({("h1", "boot0"): 0})) == []


def test_a_host_cannot_speak_for_another() -> None:
    door = Door()
    door.open(1)
    door(gs.Connected(2, "h2"))
    out = door.says(2, HELLO)
    assert replies(out) == [(2, Goodbye(reason="certificate is for host h2, hello is from h1", retry_after_s=60))]
    assert out[-1] == gs.Close(2, "certificate is for host h2, hello is from h1")
    assert door.says(2, samples(0)) == []
    assert door.core.connected() == {"h1": HELLO}


def test_the_newer_connection_of_a_host_wins() -> None:
    door = Door()
    door.open(1)
    out = door.open(2)
    assert [(conn, type(message)) for conn, message in replies(out)] == [(1, Goodbye), (2, Welcome)]
    assert gs.Close(1, "replaced by a newer connection of this host") in out
    assert door.says(1, samples(0)) == []
    assert door(gs.Disconnected(1)) == []
    assert len(door.says(2, samples(0))) == 2
    assert replies(door(gs.Durable({("h1", "b1"): 0}))) == [(2, Ack(boot_id="b1", sequence=0))]


def test_garbage_closes_that_peer_only() -> None:
    door = Door()
    door.open(1)
    door.open(2, msgspec.structs.replace(HELLO, host_id="h2"))
    out = door(gs.Received(2, b"garbage, long enough for a header"))
    assert [type(one) for one in out] == [gs.Reply, gs.Close]
    assert {one.conn_id for one in out if isinstance(one, gs.Reply | gs.Close)} == {2}
    assert list(door.core.connected()) == ["h1"]
    assert door.core.counters["garbage"] == 1
    assert door(gs.Received(99, b"")) == []


@pytest.mark.parametrize("message", [HELLO, Samples(boot_id="b1", sequence=0, block=b"no block")], ids=["second hello", "garbage block"])
def test_what_the_session_or_codec_refuses_is_not_delivered(message: object) -> None:
    door = Door()
    door.open()
    assert [type(one) for one in door.says(1, message)] == [gs.Reply, gs.Close]


@pytest.mark.parametrize(("off_s", "reason"), [(31, "31 s ahead of ours: allowed 30 s"), (-31, "31 s behind ours: allowed 30 s")])
def test_a_clock_that_is_off_by_more_than_allowed_is_sent_away_either_way(off_s: int, reason: str) -> None:
    core = GatewayCore(GatewaySettings(epoch=3, max_skew_s=30))
    core.handle(gs.Connected(1, "h1"), NOW)
    away, closed = core.handle(gs.Received(1, encode(msgspec.structs.replace(HELLO, wall_ns=NOW + off_s * NS_PER_S))), NOW)
    assert isinstance(away, gs.Reply)
    assert decode_coordinator(away.frame) == Goodbye(reason=f"clock skew: host clock is {reason}", retry_after_s=60)
    assert isinstance(closed, gs.Close)
    assert core.counters["future" if off_s > 0 else "behind"] == 1
    assert core.offsets.offset_s("h1") is None


def test_offsets_come_from_hello_and_status() -> None:
    core = GatewayCore(GatewaySettings(epoch=3, max_skew_s=30))
    core.handle(gs.Connected(1, "h1"), NOW)
    core.handle(gs.Received(1, encode(msgspec.structs.replace(HELLO, wall_ns=NOW - 9 * NS_PER_S))), NOW)
    assert core.offsets.offset_s("h1") == -9
    core.handle(gs.Received(1, encode(msgspec.structs.replace(STATUS, wall_ns=NOW - 7 * NS_PER_S))), NOW)
    assert core.offsets.offset_s("h1") == -7


def test_an_impossible_reading_costs_itself_alone() -> None:
    core = GatewayCore(GatewaySettings(epoch=3))
    core.handle(gs.Connected(1, "h1"), NOW)
    core.handle(gs.Received(1, encode(HELLO)), NOW)
    vms = {"a": VmSample(cpu_used_millicores=10**9, vcpus=4), "b": VmSample(cpu_used_millicores=5)}
    block = encode_block([HostSample(wall_ns=NOW, monotonic_ns=1, period_ns=5, vms=vms)])
    logged, delivered = core.handle(gs.Received(1, encode(Samples(boot_id="b1", sequence=0, block=block))), NOW)
    assert isinstance(logged, gs.AppendWal)
    assert isinstance(delivered, gs.Deliver)
    assert delivered.samples[0].vms == {"a": VmSample(vcpus=4), "b": VmSample(cpu_used_millicores=5)}
    assert core.implausible == {"cpu_used_millicores": 1}


def test_a_host_from_the_future_is_sent_away() -> None:
    door = Door()
    out = door.open(hello=msgspec.structs.replace(HELLO, wall_ns=NOW + gs.MAX_AHEAD_NS + NS_PER_S))
    assert replies(out) == [(1, Goodbye(reason="clock skew: host clock is 3601 s ahead of ours: allowed 3600 s", retry_after_s=60))]
    assert isinstance(replies(Door().open(hello=msgspec.structs.replace(HELLO, wall_ns=NOW + gs.MAX_AHEAD_NS)))[0][1], Welcome)
    assert door.core.connected() == {}


def test_a_frame_from_the_future_is_refused_for_good_but_does_not_block_the_spool() -> None:
    door = Door()
    door.open()
    door.says(1, samples(0))
    future = samples(1, wall_ns=NOW + gs.MAX_AHEAD_NS + 1)
    assert door.says(1, future) == []  # sequence 0 is not durable yet
    assert replies(door(gs.Durable({("h1", "b1"): 0}))) == [(1, Ack(boot_id="b1", sequence=1))]
    assert replies(door.says(1, samples(2, wall_ns=NOW + 2 * gs.MAX_AHEAD_NS))) == [(1, Ack(boot_id="b1", sequence=2))]
    assert door.core.counters["future"] == 2


def test_while_the_store_is_full_frames_stay_on_the_agent() -> None:
    door = Door()
    door.open()
    door(gs.StoreFull(True))
    assert door.says(1, STATUS) == [gs.Deliver("h1", STATUS)]
    out = door.says(1, samples(0))
    assert replies(out) == [(1, Goodbye(reason="the coordinator's log is full", retry_after_s=30))]
    door(gs.StoreFull(False))
    assert replies(door.open(2))[0][1] == Welcome(epoch=3, wall_ns=NOW, acked=-1, paused=False)
    assert len(door.says(2, samples(0))) == 2


def test_silence_takes_a_host_down_and_a_word_brings_it_back() -> None:
    door = Door()
    door.open()
    door.now += 60 * NS_PER_S
    assert door(gs.Tick()) == []
    door.now += 1
    assert door(gs.Tick()) == [gs.HostDown("h1", "silent")]
    assert door(gs.Tick()) == []
    assert door.core.silent() == ["h1"]
    assert door.says(1, Inventory(domains=()))[0] == gs.HostUp("h1")


def test_a_lost_connection_alone_is_not_silence() -> None:
    door = Door()
    door.open()
    assert door(gs.Disconnected(1)) == []
    assert door.open(2)[1:] == [gs.Deliver("h1", HELLO)]


def test_modes_are_ordered_now_and_in_every_welcome() -> None:
    door = Door()
    assert door(gs.ModeOrdered("h1", Mode.OFF)) == []
    assert replies(door.open())[0][1] == Welcome(epoch=3, wall_ns=NOW, acked=-1, mode=Mode.OFF, paused=False)
    assert (door.core.ordered("h1"), door.core.ordered("h2")) == (Mode.OFF, None)
    assert replies(door(gs.ModeOrdered("h1", Mode.PREDICTIVE))) == [(1, SetMode(mode=Mode.PREDICTIVE))]


def test_the_kill_switch_reaches_hosts_now_and_in_every_welcome() -> None:
    door = Door()
    assert door(gs.PauseOrdered(None, True)) == []
    assert replies(door.open())[0][1] == Welcome(epoch=3, wall_ns=NOW, acked=-1, paused=True)
    assert replies(door(gs.PauseOrdered("h1", True))) == [(1, SetPause(paused=True))]
    assert replies(door(gs.PauseOrdered(None, False))) == [(1, SetPause(paused=True))], "its own switch still holds"
    assert replies(door(gs.PauseOrdered("h1", False))) == [(1, SetPause(paused=False))]
    assert not door.core.paused("h1")


def test_a_plan_waits_for_its_host_and_expires() -> None:
    door = Door()
    assert door(gs.PlanReady(plan(1))) == []
    assert door(gs.PlanReady(plan(2))) == [gs.PlanUnsent(plan(1))]
    assert replies(door.open())[1:] == [(1, SendPlan(plan=plan(2)))]
    door(gs.Disconnected(1))
    door(gs.PlanReady(plan(3)))
    door.now += 2 * NS_PER_S
    assert door(gs.Tick()) == [gs.PlanUnsent(plan(3))]
    assert door(gs.Tick()) == []
    assert replies(door.open(2))[1:] == []
    counters = door.core.counters
    assert (counters["plans_sent"], counters["plans_replaced"], counters["plans_expired"]) == (1, 1, 1)


def test_a_plan_lost_with_its_connection_is_sent_again_when_the_agent_shows_it_has_none() -> None:
    door = Door()
    door.open()
    assert replies(door(gs.PlanReady(plan()))) == [(1, SendPlan(plan=plan()))]
    assert replies(door.says(1, STATUS)) == []  # on its way on this very connection
    door(gs.Disconnected(1))
    door.open(2)
    assert replies(door.says(2, msgspec.structs.replace(STATUS, plan_epoch=3, plan_sequence=1))) == []
    assert replies(door.says(2, STATUS)) == [(2, SendPlan(plan=plan()))]
    assert replies(door.says(2, STATUS)) == []


@given(st.data())
def test_nothing_acknowledged_is_lost_and_nothing_is_delivered_twice(data: st.DataObject) -> None:
    """An honest agent over a connection that breaks, a coordinator that crashes: its log and its acks against the agent's frames."""
    log: list[int] = []  # durable
    buffer: list[int] = []  # appended, not yet durable
    delivered_since_start: list[int] = []
    spool = list(range(data.draw(st.integers(1, 12))))
    frames = {sequence: encode(samples(sequence)) for sequence in spool}
    total, cursor, conn_id = len(spool), 0, 0
    door, connected = Door(), False
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(("send", "sync", "drop", "crash", "send")))
        out: list[gs.Instruction] = []
        if action == "send" and not connected:
            conn_id, connected, cursor = conn_id + 1, True, 0
            out = door.open(conn_id)
        elif action == "send" and cursor < len(spool):
            out = door(gs.Received(conn_id, frames[spool[cursor]]))
            cursor += 1
        elif action == "sync" and buffer:
            log += buffer
            buffer = []
            out = door(gs.Durable({("h1", "b1"): log[-1]}))
        elif action == "drop" and connected:
            connected, out = False, door(gs.Disconnected(conn_id))
        elif action == "crash":
            door, connected, buffer, delivered_since_start = Door(acked={("h1", "b1"): log[-1]} if log else {}), False, [], list(log)
        for one in out:
            if isinstance(one, gs.AppendWal):
                buffer.append(one.sequence)
            if isinstance(one, gs.Deliver) and isinstance(one.message, Samples):
                delivered_since_start.append(one.message.sequence)
        for _, message in replies(out):
            acked = message.acked if isinstance(message, Welcome) else message.sequence if isinstance(message, Ack) else -1
            assert set(range(acked + 1)) <= set(log)
            dropped = sum(sequence <= acked for sequence in spool)
            spool, cursor = spool[dropped:], max(0, cursor - dropped)
        assert max(Counter(log + buffer).values(), default=1) == 1
        assert delivered_since_start == log + buffer
        assert set(log) | set(spool) == set(range(total))


def test_time_in_which_the_coordinator_stood_still_makes_no_host_silent() -> None:
    core = GatewayCore(GatewaySettings(epoch=3, stale_host_s=60))
    core.handle(gs.Connected(1, "h1"), NOW)
    core.handle(gs.Received(1, encode(HELLO)), NOW)
    now = NOW
    for step_s in (1, 25, 90):  # it looked, a second later; then it stood still for a minute and a half
        now += step_s * NS_PER_S
        assert core.handle(gs.Tick(), now) == []
    downs = [core.handle(gs.Tick(), now + i * NS_PER_S) for i in range(1, 40)]
    assert [i for i, down in enumerate(downs, 1) if down] == [35]  # 26 s of silence before, 35 since
    assert downs[34] == [gs.HostDown("h1", "silent")]
