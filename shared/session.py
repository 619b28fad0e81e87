"""One agent-coordinator session as transition tables, sans-I/O; both ends run the same object.

    CONNECTING --Hello--> HELLO --Welcome--> OPEN --Goodbye or lost--> CLOSED

Invariant: a message that the table does not list for the present state never reaches the code behind it. What the peer does
wrong is a PeerError (drop the peer); what we would do wrong is a ValueError (our bug). The shape is h11's (`_state.py`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shared.errors import PeerError
from shared.messages import (
    Ack,
    AgentMessage,
    CoordinatorMessage,
    Goodbye,
    Hello,
    Inventory,
    Outcomes,
    Samples,
    SendPlan,
    SetMode,
    SetPause,
    SetPolicies,
    Status,
    Welcome,
)


class Side(StrEnum):
    """Which end of the connection this session object stands on."""

    AGENT = "agent"
    COORDINATOR = "coordinator"


class SessionState(StrEnum):
    """Where the session is. HELLO: the agent has named itself and the coordinator owes an answer."""

    CONNECTING = "connecting"
    HELLO = "hello"
    OPEN = "open"
    CLOSED = "closed"


_Table = dict[SessionState, dict[type, SessionState]]

# What the agent may say, by state, and the state it leads to.
AGENT_SAYS: Final[_Table] = {
    SessionState.CONNECTING: {Hello: SessionState.HELLO},
    SessionState.HELLO: {},
    SessionState.OPEN: dict.fromkeys((Inventory, Samples, Outcomes, Status), SessionState.OPEN),
    SessionState.CLOSED: {},
}

# What the coordinator may say. Goodbye ends the session from every living state.
COORDINATOR_SAYS: Final[_Table] = {
    SessionState.CONNECTING: {Goodbye: SessionState.CLOSED},
    SessionState.HELLO: {Welcome: SessionState.OPEN, Goodbye: SessionState.CLOSED},
    SessionState.OPEN: {**dict.fromkeys((Ack, SendPlan, SetMode, SetPause, SetPolicies), SessionState.OPEN), Goodbye: SessionState.CLOSED},
    SessionState.CLOSED: {},
}


class Session:
    """State of one connection as seen from `side`. Every message sent or received passes through here first."""

    def __init__(self, side: Side) -> None:
        self.state = SessionState.CONNECTING
        self._sends = AGENT_SAYS if side is Side.AGENT else COORDINATOR_SAYS
        self._receives = COORDINATOR_SAYS if side is Side.AGENT else AGENT_SAYS

    def received(self, message: AgentMessage | CoordinatorMessage) -> None:
        """Advance on a message of the peer. Raises PeerError when it is not legal now; the session is then closed."""
        following = self._receives[self.state].get(type(message))
        if following is None:
            state, self.state = self.state, SessionState.CLOSED
            raise PeerError(f"{_name(message)} is not allowed in state {state}: {_allowed(self._receives[state])}")
        self.state = following

    def sending(self, message: AgentMessage | CoordinatorMessage) -> None:
        """Advance on a message of ours. Raises ValueError when the table forbids it (our bug)."""
        following = self._sends[self.state].get(type(message))
        if following is None:
            raise ValueError(f"cannot send {_name(message)} in state {self.state}: {_allowed(self._sends[self.state])}")
        self.state = following

    def close(self) -> None:
        """The transport is gone or about to go."""
        self.state = SessionState.CLOSED


def _name(message: object) -> str:
    return type(message).__name__


def _allowed(row: dict[type, SessionState]) -> str:
    return f"allowed are {', '.join(sorted(kind.__name__ for kind in row))}" if row else "nothing is allowed"
