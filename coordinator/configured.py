"""The coordinator's configuration as its commands read it: --config, else the default file where it exists, and the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from shared.config import COORDINATOR_PREFIX, CoordinatorConfig, load

DEFAULT_CONFIG: Final = Path("/etc/tidegate/coordinator.toml")
CONFIG_OPTION: Final = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help=f"Configuration file [default: {DEFAULT_CONFIG} where it exists]."
)


def configuration(path: Path | None) -> CoordinatorConfig:
    """Raises ConfigError."""
    chosen = path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    return load(chosen, CoordinatorConfig, os.environ, COORDINATOR_PREFIX)
