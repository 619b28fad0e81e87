"""Who asks: a caller with a name, a role and, for clients, whose VMs it may see. Known for the length of one request.

The caller of the request under way is in CALLER, a context variable: the edge sets it before a handler runs, and `own_view.seen` narrows
the fleet by it. Handlers cannot forget it: what they get is what the caller may see.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

import msgspec

from shared.roles import Role


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """`role` None = nobody: no token and no open reads. `how` tells two callers of one name apart and is no secret."""

    name: str
    role: Role | None
    how: str  # token:ID, certificate:NAME, address:IP
    client: str | None = None  # of role client

    @property
    def known(self) -> bool:
        """Showed a token or a certificate."""
        return not self.how.startswith("address:")


NOBODY: Final = Caller(name="", role=None, how="address:")
CALLER: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
