"""The session table: every message in every state, from both ends."""

import pytest
from plain_host import plain_capacity

from shared.errors import PeerError
from shared.messages import Ack, Goodbye, Hello, Inventory, Outcomes, Samples, SendPlan, SetMode, SetPolicies, Status, Welcome
from shared.model import Mode
from shared.plan import Plan
from shared.session import Session, SessionState, Side

CAPACITY = plain_capacity()
HELLO = Hello(host_id="h1", boot_id="b1", agent_version="1", wall_ns=0, capacity=CAPACITY, mode=Mode.OBSERVE, mode_pinned=False)
WELCOME = Welcome(epoch=1, wall_ns=0, acked=-1)
SAMPLES = Samples(boot_id="b1", sequence=0, block=b"")
ACK = Ack(boot_id="b1", sequence=0)
AGENT = (
    HELLO,
    SAMPLES,
    Inventory(domains=()),
    Outcomes(boot_id="b1", sequence=0, outcomes=()),
    Status(wall_ns=0, mode=Mode.OBSERVE, mode_pinned=False),
)
COORDINATOR = (
    WELCOME,
    ACK,
    SendPlan(plan=Plan(host_id="h1", epoch=1, sequence=1, issued_ns=0, deadline_ns=1, steps=())),
    SetMode(mode=Mode.OFF),
    SetPolicies(policies={}),
    Goodbye(reason="x"),
)
LEGAL = {
    (SessionState.CONNECTING, Hello): SessionState.HELLO,
    (SessionState.CONNECTING, Goodbye): SessionState.CLOSED,
    (SessionState.HELLO, Welcome): SessionState.OPEN,
    (SessionState.HELLO, Goodbye): SessionState.CLOSED,
    (SessionState.OPEN, Goodbye): SessionState.CLOSED,
    **{
        (SessionState.OPEN, kind): SessionState.OPEN for kind in (Inventory, Samples, Outcomes, Status, Ack, SendPlan, SetMode, SetPolicies)
    },
}


def at(side: Side, state: SessionState) -> Session:
    session = Session(side)
    session.state = state
    return session


@pytest.mark.parametrize("state", SessionState)
@pytest.mark.parametrize("message", AGENT + COORDINATOR, ids=lambda message: type(message).__name__)
def test_each_message_in_each_state(state: SessionState, message: Hello | Welcome) -> None:
    sender, receiver = (Side.AGENT, Side.COORDINATOR) if message in AGENT else (Side.COORDINATOR, Side.AGENT)
    following = LEGAL.get((state, type(message)))
    sending, receiving = at(sender, state), at(receiver, state)
    if following is None:
        with pytest.raises(ValueError, match=f"cannot send {type(message).__name__} in state {state}"):
            sending.sending(message)
        with pytest.raises(PeerError, match=f"{type(message).__name__} is not allowed in state {state}"):
            receiving.received(message)
        assert sending.state is state
        assert receiving.state is SessionState.CLOSED
    else:
        sending.sending(message)
        receiving.received(message)
        assert sending.state is receiving.state is following


@pytest.mark.parametrize("side", Side)
def test_nobody_may_speak_with_the_other_sides_words(side: Side) -> None:
    session = at(side, SessionState.OPEN)
    own, other = (SAMPLES, ACK) if side is Side.AGENT else (ACK, SAMPLES)
    session.sending(own)
    with pytest.raises(PeerError, match="allowed are"):
        session.received(own)
    with pytest.raises(ValueError, match="cannot send"):
        at(side, SessionState.OPEN).sending(other)


def test_closed_is_final() -> None:
    session = at(Side.AGENT, SessionState.OPEN)
    session.close()
    with pytest.raises(PeerError, match="nothing is allowed"):
        session.received(ACK)
