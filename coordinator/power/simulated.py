"""A power switch that only keeps a record: for demos and tests, whose hosts are processes and not machines."""

from __future__ import annotations

from collections.abc import Callable

from shared.errors import HostError


class SimulatedSwitch:
    """Accepts every order. `orders` lists (host_id, wake); `switched` is told of each; hosts in `broken` answer with an error."""

    def __init__(self, switched: Callable[[str, bool], None] | None = None) -> None:
        self.orders: list[tuple[str, bool]] = []
        self.broken: set[str] = set()
        self._switched = switched

    def cannot(self, host_id: str) -> str | None:
        """Every host can be switched."""
        return None

    async def sleep(self, host_id: str) -> None:
        """As PowerSwitch.sleep."""
        self._switch(host_id, wake=False)

    async def wake(self, host_id: str) -> None:
        """As PowerSwitch.wake."""
        self._switch(host_id, wake=True)

    def _switch(self, host_id: str, *, wake: bool) -> None:
        self.orders.append((host_id, wake))
        if host_id in self.broken:
            raise HostError(f"power of {host_id}: does not answer (simulated)")
        if self._switched is not None:
            self._switched(host_id, wake)
