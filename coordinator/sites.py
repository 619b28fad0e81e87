"""Reads the operator's site file at start: pools, prices, power, fault domains and rules over VMs."""

from __future__ import annotations

from pathlib import Path

from coordinator.placement.fleet.site import DEFAULT_SITE, Site
from coordinator.placement.fleet.site_file import MAX_BYTES, parse_site
from shared.config import CoordinatorConfig
from shared.errors import ConfigError


def read_site(config: CoordinatorConfig) -> Site:
    """The site of `placement.site`, or built-in values where it is not set. Raises ConfigError naming file, field, value and allowed."""
    if not config.placement.site:
        return DEFAULT_SITE
    path = Path(config.placement.site)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"placement.site {path}: larger than {MAX_BYTES} bytes")
        return parse_site(path.read_text(encoding="utf-8"), f"placement.site {path}")
    except OSError as error:
        raise ConfigError(f"placement.site {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"placement.site {path}: not UTF-8: {error.reason}") from None
