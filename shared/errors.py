"""Errors say whose fault: our configuration, the peer, the host, or a guard that said no. Anything else is a bug."""

from __future__ import annotations

from collections.abc import Mapping

from shared.refusal import DESCRIPTIONS, RefusalCode

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h


class TidegateError(Exception):
    """Base of every error that Tidegate raises on purpose."""


class ConfigError(TidegateError):
    """The operator's configuration or command line is wrong. The process exits with 78."""


class PeerError(TidegateError):
    """The other side of a connection broke the protocol. The peer is dropped, we go on."""


class HostError(TidegateError):
    """The host (libvirt, kernel, netlink) failed. Retried with back-off."""


class Refusal(TidegateError):
    """A guard said no. `code` is stable; `detail` and `numbers` say what was asked and what is allowed."""

    def __init__(self, code: RefusalCode, detail: str = "", numbers: Mapping[str, int | float] | None = None) -> None:
        self.code = code
        self.detail = detail or DESCRIPTIONS[code]
        self.numbers: dict[str, int | float] = dict(numbers or {})
        super().__init__(f"{code}: {self.detail}")
