"""Tells systemd that the service is ready or alive (sd_notify(3)); does nothing where there is no systemd.

The watchdog is petted only by a finished cycle, so a hung loop gets the process restarted.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

SEND_TIMEOUT_S: Final = 1.0  # a manager that does not read its mail must not hold up the agent


def notify(state: str) -> bool:
    """Send `state` ("READY=1", "WATCHDOG=1", "STOPPING=1", "STATUS=..."; several in lines). False when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(SEND_TIMEOUT_S)
        try:
            connection.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def notify_reloading() -> bool:
    """Say that the configuration is being read anew; READY=1 ends it. Type=notify-reload asks for the time stamp (systemd.service(5))."""
    return notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
