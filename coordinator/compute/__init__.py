"""Where forecasts and solves run: Ray or this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import TidegateError

if TYPE_CHECKING:
    from coordinator.compute.local_pool import LocalPool
    from coordinator.compute.ray_pool import RayPool
    from coordinator.forecast.engine import ForecastOptions
    from shared.config import CoordinatorConfig


class PoolLost(TidegateError):
    """Workers died with their state: load history again, then repeat the call."""


def open_pool(config: CoordinatorConfig, options: ForecastOptions) -> RayPool | LocalPool:
    """The pool that the configuration asks for. Blocks for some seconds where Ray has to start."""
    if config.ray:
        from coordinator.compute.ray_pool import RayPool  # noqa: PLC0415  # Ray takes seconds to import

        return RayPool(options, config.ray_workers, Path(config.state_dir))
    from coordinator.compute.local_pool import LocalPool  # noqa: PLC0415

    return LocalPool(options, 1)
