"""Where forecasts and solves run: Ray or this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.errors import ConfigError, TidegateError

if TYPE_CHECKING:
    from coordinator.compute.local_pool import LocalPool
    from coordinator.compute.ray_pool import RayPool
    from coordinator.forecast.engine import ForecastOptions
    from shared.config import CoordinatorConfig


EXPLAIN_S: Final = 5.0  # somebody looks at a page meanwhile; a tick takes less
PLACE_GRACE_S: Final = 20.0  # beyond a placement's deadline: a process starts, libraries load, the plan is put into words


class PoolLost(TidegateError):
    """Workers died with their state, or the VMs were spread anew: load the history of the VMs that `lost` names, then repeat the call.

    To load all history is right too, only slower: shards that went on lose nothing but time.
    """

    def __init__(self, reason: str, lost: frozenset[str] | None = None) -> None:
        """`lost` None: every VM's state."""
        super().__init__(reason)
        self._lost = lost

    def lost(self, vm_id: str) -> bool:
        """Whether the state of this VM is gone."""
        return self._lost is None or vm_id in self._lost


class NotNow(TidegateError):
    """A question that can wait was not answered: the worker is busy or dead. Who is dead is replaced with the next forecast."""


class FleetTooLarge(ConfigError):
    """The fleet's forecasts need more memory than the machines behind the pool have."""


def open_pool(config: CoordinatorConfig, options: ForecastOptions) -> RayPool | LocalPool:
    """The pool that the configuration asks for. Blocks for some seconds where Ray has to start."""
    if config.ray:
        from coordinator.compute.ray_pool import RayPool  # noqa: PLC0415  # Ray takes seconds to import

        return RayPool(options, config.ray_workers, Path(config.state_dir), config.ray_address or None, shard_bytes=config.ray_shard_bytes)
    from coordinator.compute.local_pool import LocalPool  # noqa: PLC0415

    return LocalPool(options, 1)
