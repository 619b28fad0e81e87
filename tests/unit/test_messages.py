"""Wire messages: each survives the wire, and each bound is a bound."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from plain_host import plain_capacity

from shared import messages as msg
from shared.errors import PeerError
from shared.frame import HEADER, MAGIC, VERSION, decode_agent, decode_coordinator, encode
from shared.model import Capabilities, Domain, Mode, Policy, Priority
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode

CAPACITY = plain_capacity()
STEP = Step(id="s1", vm_id="vm1", kind=StepKind.MEMORY, value=2**30, before=None, reason="forecast_peak", deadline_ns=9)
FROM_AGENT: tuple[msg.AgentMessage, ...] = (
    msg.Hello(host_id="h1", boot_id="b1", agent_version="1", wall_ns=1, capacity=CAPACITY, mode=Mode.PREDICTIVE, mode_pinned=True),
    msg.Inventory(
        domains=(
            Domain(
                vm_id="vm1",
                name="Ünïcode name",
                vcpus_max=4,
                memory_max_bytes=2**30,
                policy=Policy(priority=Priority.HIGH),
                capabilities=Capabilities(balloon="vfio device"),
            ),
        )
    ),
    msg.Samples(boot_id="b1", sequence=2**53, block=bytes(range(256))),
    msg.Outcomes(
        boot_id="b1",
        sequence=0,
        outcomes=(Outcome(step=STEP, state=OutcomeState.REFUSED, code=RefusalCode.BELOW_WORKING_SET, detail="512 < 600"),),
    ),
    msg.Status(wall_ns=1, mode=Mode.OFF, mode_pinned=False, spool_frames=3, spool_dropped=1, plan_epoch=2, plan_sequence=9),
)
FROM_COORDINATOR: tuple[msg.CoordinatorMessage, ...] = (
    msg.Welcome(epoch=1, wall_ns=1, acked=-1, mode=None),
    msg.Welcome(epoch=2, wall_ns=1, acked=7, mode=Mode.OBSERVE),
    msg.Ack(boot_id="b1", sequence=7),
    msg.SendPlan(plan=Plan(host_id="h1", epoch=1, sequence=1, issued_ns=0, deadline_ns=9, steps=(STEP,))),
    msg.SetMode(mode=Mode.REACTIVE),
    msg.SetPause(paused=True),
    msg.SetPolicies(policies={"vm1": Policy(mode=Mode.OBSERVE, size_quantile_permille=950)}),
    msg.Goodbye(reason="restart", retry_after_s=0),
)


@pytest.mark.parametrize("message", FROM_AGENT, ids=lambda message: type(message).__name__)
def test_agents_messages_survive_the_wire(message: msg.AgentMessage) -> None:
    assert decode_agent(encode(message)) == message


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=lambda message: type(message).__name__)
def test_coordinators_messages_survive_the_wire(message: msg.CoordinatorMessage) -> None:
    assert decode_coordinator(encode(message)) == message


def test_every_message_of_the_protocol_is_covered_above() -> None:
    assert {type(message) for message in FROM_AGENT} == set(msg.AgentMessage.__args__)
    assert {type(message) for message in FROM_COORDINATOR} == set(msg.CoordinatorMessage.__args__)


def changed(message: object, **fields: object) -> bytes:
    """The frame of a message with fields set past our own validation."""
    body = msgspec.msgpack.encode({**msgspec.to_builtins(message, builtin_types=(bytes,)), **fields})
    return HEADER.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body


HELLO, INVENTORY, SAMPLES, OUTCOMES, STATUS = FROM_AGENT


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (HELLO, {"host_id": ""}),
        (HELLO, {"host_id": "../../etc"}),
        (HELLO, {"host_id": "h" * 129}),
        (HELLO, {"mode": "turbo"}),
        (HELLO, {"capacity": None}),
        (HELLO, {"capacity": {**msgspec.to_builtins(CAPACITY), "cpu_millicores": 0}}),
        (HELLO, {"capacity": {**msgspec.to_builtins(CAPACITY), "memory_bytes": 2**60}}),
        (HELLO, {"agent_version": "v" * 257}),
        (HELLO, {"wall_ns": 1.5}),
        (INVENTORY, {"domains": [{"vm_id": "vm1"}]}),
        (INVENTORY, {"domains": [{"vm_id": "vm1", "name": "x", "vcpus_max": 0, "memory_max_bytes": 1}]}),
        (SAMPLES, {"sequence": -1}),
        (SAMPLES, {"sequence": 2**53 + 1}),
        (SAMPLES, {"block": "text"}),
        (OUTCOMES, {"outcomes": [{"step": None, "state": "verified"}]}),
        (OUTCOMES, {"outcomes": [{}] * 4097}),
        (STATUS, {"mode_pinned": 2}),
        (STATUS, {"spool_frames": -1}),
    ],
)
def test_impossible_values_are_refused_at_the_edge(message: msg.AgentMessage, fields: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="frame body"):
        decode_agent(changed(message, **fields))
