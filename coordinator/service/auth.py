"""Bearer tokens for writes: 256 random bits each, stored only as a SHA-256.

A slow password hash protects low-entropy secrets; against 256 random bits a fast one loses nothing, and it cannot be used to
exhaust the CPU (NIST SP 800-63B, 5.1.4.2 on look-up secrets). Invariant: a plain token is never stored, logged or compared.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

PREFIX: Final = "tg_"  # lets secret scanners recognise a leaked token
MAX_TOKEN_CHARS: Final = 256  # ours have 46; longer input is not worth hashing


def new_token() -> tuple[str, str]:
    """A fresh token as (plain, hash). Show the first once, store the second."""
    plain = PREFIX + secrets.token_urlsafe(32)
    return plain, hash_token(plain)


def hash_token(plain: str) -> str:
    """What is stored: `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(plain.encode()).hexdigest()


class TokenVerifier:
    """Recognises tokens by their hash. `names` (hash -> name) is read on every call, so a live mapping takes effect at once."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def verify(self, plain: str) -> str | None:
        """The token's name, or None. Compares against every hash in constant time, whichever matches."""
        if not plain or len(plain) > MAX_TOKEN_CHARS or not plain.isascii():
            return None
        digest = hash_token(plain)
        found: str | None = None
        for stored, name in list(self._names.items()):
            if hmac.compare_digest(stored.encode(), digest.encode()):
                found = name
        return found

    def verify_header(self, authorization: str | None) -> str | None:
        """The name behind an `Authorization: Bearer TOKEN` header, or None."""
        scheme, _, plain = (authorization or "").partition(" ")
        return self.verify(plain.strip()) if scheme.lower() == "bearer" else None
