"""Wake-on-LAN: the magic packet of AMD's white paper 20213 (1995): six bytes 0xFF, then the MAC address sixteen times, by UDP broadcast.

Nobody answers a magic packet, so it is sent several times, a moment apart; whether it worked, the host's own agent shows. A packet cannot
put a host to sleep: that is the command's, where there is one.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping
from typing import Final, Self

from coordinator.ports import PowerSwitch
from shared.config import PowerConfig, by_host
from shared.errors import ConfigError, HostError

PORT: Final = 9
TIMES: Final = 3
APART_S: Final = 0.2
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}")


class WakeOnLanSwitch:
    """Wakes by magic packet to `broadcast`; sleeps by `sleeper`, None = cannot. Raises ConfigError for a MAC that is none."""

    def __init__(
        self, macs: Mapping[str, str], sleeper: PowerSwitch | None = None, broadcast: str = "255.255.255.255", port: int = PORT
    ) -> None:
        self._packets = {host_id: magic_packet(mac) for host_id, mac in macs.items()}
        self._sleeper = sleeper
        self._to = (broadcast, port)

    @classmethod
    def of(cls, config: PowerConfig, sleeper: PowerSwitch | None) -> Self:
        """As the settings say."""
        return cls(by_host("power.macs", config.macs), sleeper, config.broadcast)

    def cannot(self, host_id: str) -> str | None:
        """None where the host has a MAC and something puts it to sleep; only what can be woken is put to sleep."""
        if host_id not in self._packets:
            return f"{host_id} is not among power.macs"
        if self._sleeper is None:
            return "power.sleep_command is not set"
        why = self._sleeper.cannot(host_id)
        return None if why is not None and why.startswith("power.wake_command") else why

    async def sleep(self, host_id: str) -> None:
        """As PowerSwitch.sleep."""
        if self._sleeper is None:
            raise HostError(f"power of {host_id}: Wake-on-LAN puts nobody to sleep, and power.sleep_command is not set")
        await self._sleeper.sleep(host_id)

    async def wake(self, host_id: str) -> None:
        """Send the packets. Raises HostError where none can be sent."""
        packet = self._packets.get(host_id)
        if packet is None:
            raise HostError(f"power of {host_id}: not among power.macs")
        for n in range(TIMES):
            if n:
                await asyncio.sleep(APART_S)
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sender.setblocking(False)
                    sender.sendto(packet, self._to)
            except OSError as error:
                raise HostError(f"power of {host_id}: magic packet to {self._to[0]}: {error.strerror}") from error


def magic_packet(mac: str) -> bytes:
    """102 bytes. Raises ConfigError for what is no MAC address."""
    if not _MAC.fullmatch(mac):
        raise ConfigError(f"power.macs: {mac!r}: allowed are six hexadecimal bytes, as 52:54:00:12:34:56")
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16
