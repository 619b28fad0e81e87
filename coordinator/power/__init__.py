"""How hosts are switched off and on: adapters behind coordinator.ports.PowerSwitch. `open_power` gives the one of the configuration."""

from __future__ import annotations

from coordinator.ports import PowerSwitch
from coordinator.power.command import CommandSwitch
from coordinator.power.simulated import SimulatedSwitch
from coordinator.power.wake_on_lan import WakeOnLanSwitch
from shared.config import PowerConfig
from shared.errors import ConfigError

__all__ = ["CommandSwitch", "SimulatedSwitch", "WakeOnLanSwitch", "open_power"]


def open_power(config: PowerConfig) -> PowerSwitch | None:
    """The power switch of the settings; None = no host is ever switched. Raises ConfigError."""
    match config.switch:
        case "none":
            return None
        case "simulated":
            return SimulatedSwitch()
        case "command":
            return CommandSwitch.of(config)
        case "wake_on_lan":
            if not config.macs:
                raise ConfigError("power.macs: empty; wake_on_lan needs HOST_ID=MAC of each host")
            sleeper = CommandSwitch.of(config) if config.sleep_command else None
            return WakeOnLanSwitch.of(config, sleeper)
