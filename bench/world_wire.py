"""The network of the simulated world: one ordered connection per agent, with delay, repeats and resets.

A TCP connection loses nothing in its middle: a lost frame takes the connection with it, and each side notices at a time of its own.
Frames towards the coordinator may come twice, as after a reconnect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.units import NS_PER_S

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_agent import AgentNode


class Wire:
    """One connection. Frames arrive in order in each direction; a reset loses what is under way."""

    def __init__(self, world: World, agent: AgentNode, conn_id: int) -> None:
        self._world, self._agent, self.conn_id = world, agent, conn_id
        self.open = True
        self._due = [0, 0]

    def to_coordinator(self, frame: bytes) -> None:
        """Send from the agent."""
        node = self._world.coordinator
        self._send(0, frame, lambda: node.received(self.conn_id, frame))

    def to_agent(self, frame: bytes) -> None:
        """Send from the coordinator."""
        self._send(1, frame, lambda: self._agent.received(self, frame))

    def reset(self) -> None:
        """Break: each side notices at a time of its own."""
        if self.open:
            self.open = False
            world, node, incarnation = self._world, self._world.coordinator, self._world.coordinator.incarnation
            world.after(world.random.uniform(0, 5), lambda: self._agent.disconnected(self))
            world.after(world.random.uniform(0, 40), lambda: node.disconnected(self.conn_id, incarnation))

    def close(self) -> None:
        """The coordinator ends it: what was sent before still arrives, then the agent sees the end."""
        self._send(1, b"", lambda: self._agent.disconnected(self))

    def _send(self, direction: int, frame: bytes, deliver: Callable[[], None]) -> None:
        world, weather = self._world, self._world.weather
        if not self.open:
            return
        world.record_frame(2 * self.conn_id + direction, frame)
        if world.random.random() < weather.reset:
            world.count("reset")
            self.reset()
            return
        self._due[direction] = max(self._due[direction], world.now_ns + int(world.random.uniform(*weather.delay_s) * NS_PER_S))
        copies = 2 if direction == 0 and world.random.random() < weather.duplicate else 1
        for _ in range(copies):
            world.at(self._due[direction], lambda: deliver() if self.open else None)
        if copies == 2:
            world.count("duplicate")
