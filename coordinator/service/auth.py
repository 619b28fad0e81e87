"""Bearer tokens for writes: 256 random bits each, stored only as a SHA-256.

A slow password hash protects low-entropy secrets; against 256 random bits a fast one loses nothing, and it cannot be used to
exhaust the CPU (NIST SP 800-63B, 5.1.4.2 on look-up secrets). Invariant: a plain token is never stored, logged or compared.
A token made while the coordinator runs counts at once: one that is not known is looked up anew, at most once in REFRESH_S seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final

PREFIX: Final = "tg_"  # lets secret scanners recognise a leaked token
MAX_TOKEN_CHARS: Final = 256  # ours have 46; longer input is not worth hashing
REFRESH_S: Final = 1.0  # bounds what a flood of wrong tokens can make the registry read


def new_token() -> tuple[str, str]:
    """A fresh token as (plain, hash). Show the first once, store the second."""
    plain = PREFIX + secrets.token_urlsafe(32)
    return plain, hash_token(plain)


def hash_token(plain: str) -> str:
    """What is stored: `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(plain.encode()).hexdigest()


class TokenVerifier:
    """Recognises tokens by their hash. `names` (hash -> name) is read on every call, so a live mapping takes effect at once.

    `refresh` gives the mapping as it is stored now; `clock` is monotonic seconds.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        *,
        refresh: Callable[[], Mapping[str, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._refresh, self._clock = refresh, clock
        self._refresh_due = clock()

    def verify(self, plain: str) -> str | None:
        """The token's name, or None. Compares against every hash in constant time, whichever matches."""
        if not plain or len(plain) > MAX_TOKEN_CHARS or not plain.isascii():
            return None
        digest = hash_token(plain)
        found = self._find(digest)
        if found is None and self._refresh is not None and self._clock() >= self._refresh_due:
            self._refresh_due = self._clock() + REFRESH_S
            self._names = self._refresh()
            found = self._find(digest)
        return found

    def _find(self, digest: str) -> str | None:
        found: str | None = None
        for stored, name in list(self._names.items()):
            if hmac.compare_digest(stored.encode(), digest.encode()):
                found = name
        return found

    def verify_header(self, authorization: str | None) -> str | None:
        """The name behind an `Authorization: Bearer TOKEN` header, or None."""
        scheme, _, plain = (authorization or "").partition(" ")
        return self.verify(plain.strip()) if scheme.lower() == "bearer" else None
