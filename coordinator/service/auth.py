"""Bearer tokens: 256 random bits each, stored only as a SHA-256, each with a role, perhaps a client and an end.

A slow password hash protects low-entropy secrets; against 256 random bits a fast one loses nothing, and it cannot be used to
exhaust the CPU (NIST SP 800-63B, 5.1.4.2 on look-up secrets). The look-up is by the digest: its time tells nothing that helps to find a
preimage. Invariant: a plain token is never stored, logged or compared.
A token made while the coordinator runs counts at once: one that is not known is looked up anew, at most once in REFRESH_S seconds. One
that was revoked or has expired stops within STALE_S seconds, at once where this process was told.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from coordinator.store.tokens import Grant, id_of
from shared.errors import HostError

PREFIX: Final = "tg_"  # lets secret scanners recognise a leaked token
MAX_TOKEN_CHARS: Final = 256  # ours have 46; longer input is not worth hashing
REFRESH_S: Final = 1.0  # bounds what a flood of wrong tokens can make the registry read
STALE_S: Final = 5.0
USED_S: Final = 600  # "last used" is noted at most so often

Grants = Mapping[str, Grant] | Mapping[str, str]
_log = structlog.get_logger(__name__)


def new_token() -> tuple[str, str]:
    """A fresh token as (plain, hash). Show the first once, store the second."""
    plain = PREFIX + secrets.token_urlsafe(32)
    return plain, hash_token(plain)


def hash_token(plain: str) -> str:
    """What is stored: `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(plain.encode()).hexdigest()


class TokenVerifier:
    """Recognises tokens by their hash. `grants` (hash -> grant, or a name: an operator) is read on every call.

    `refresh` gives the mapping as it is stored now; `clock` is monotonic seconds, `wall_ns` the real time that grants expire by.
    """

    def __init__(
        self,
        grants: Grants,
        *,
        refresh: Callable[[], Grants] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._grants = grants
        self._refresh, self._clock, self._wall_ns = refresh, clock, wall_ns
        self._refresh_due = clock()
        self._stale_at = clock() + STALE_S
        self._refreshing = asyncio.Lock()
        self._used: dict[str, int] = {}  # hash -> Unix seconds, not yet taken

    def verify(self, plain: str) -> str | None:
        """The token's name, or None. Reads the registry itself where the token is not known."""
        found = self._find(plain)
        if found is None and _plausible(plain) and self._due():
            self._take(self._refresh() if self._refresh is not None else self._grants)
            found = self._find(plain)
        return None if found is None else found.name

    def verify_header(self, authorization: str | None) -> str | None:
        """The name behind an `Authorization: Bearer TOKEN` header, or None."""
        return self.verify(bearer(authorization))

    async def recognise(self, authorization: str | None) -> Grant | None:
        """What the header grants now, or None. Reads the registry in a thread; where that fails, what is known stays in force."""
        plain = bearer(authorization)
        if not _plausible(plain):
            return None
        if self._unsure(plain):
            async with self._refreshing:
                if self._unsure(plain):  # else another read them meanwhile
                    await self._read()
        return self._find(plain)

    async def reload(self) -> None:
        """Read the grants anew: one was made, or revoked."""
        async with self._refreshing:
            await self._read()

    def take_used(self) -> dict[str, int]:
        """hash -> when it was used, since last asked; each at most once in USED_S seconds."""
        used, self._used = self._used, {}
        return used

    def _unsure(self, plain: str) -> bool:
        return self._clock() >= self._stale_at or (self._find(plain) is None and self._due())

    async def _read(self) -> None:
        if self._refresh is None:
            return
        try:
            self._take(await asyncio.get_running_loop().run_in_executor(None, self._refresh))
        except HostError as error:
            self._take(self._grants)
            _log.warning("tokens not read, those known stay in force", reason=str(error))

    def _due(self) -> bool:
        return self._refresh is not None and self._clock() >= self._refresh_due

    def _take(self, grants: Grants) -> None:
        self._grants = grants
        self._refresh_due = self._clock() + REFRESH_S
        self._stale_at = self._clock() + STALE_S

    def _find(self, plain: str) -> Grant | None:
        if not _plausible(plain):
            return None
        digest = hash_token(plain)
        found = self._grants.get(digest)
        if found is None:
            return None
        if isinstance(found, str):
            return Grant(id=id_of(digest), name=found)
        now_ns = self._wall_ns()
        if not found.holds(now_ns):
            return None
        now_s = now_ns // 10**9
        if now_s - (found.used_s or 0) >= USED_S:
            self._used[digest] = now_s
        return found


def bearer(authorization: str | None) -> str:
    """The plain token of an `Authorization: Bearer TOKEN` header; empty = there is none."""
    scheme, _, plain = (authorization or "").partition(" ")
    return plain.strip() if scheme.lower() == "bearer" else ""


def _plausible(plain: str) -> bool:
    return bool(plain) and len(plain) <= MAX_TOKEN_CHARS and plain.isascii()
