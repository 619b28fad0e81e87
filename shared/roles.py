"""Who may do what, in four words: the one vocabulary of roles in tokens, certificates, audit, API and docs.

VIEWER < OPERATOR < ADMIN is a ladder. CLIENT stands beside it: it sees its own VMs, nobody else's, and changes no host.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a caller is to the API."""

    VIEWER = "viewer"  # reads all, changes nothing
    CLIENT = "client"  # reads what belongs to its own VMs
    OPERATOR = "operator"  # and changes modes, pauses, VMs
    ADMIN = "admin"  # and says who else may


RANK: Final[dict[Role, int]] = {Role.VIEWER: 1, Role.OPERATOR: 2, Role.ADMIN: 3}


def at_least(role: Role, least: Role) -> bool:
    """Whether `role` stands on the ladder's rung `least` or above. CLIENT stands on none."""
    return RANK.get(role, 0) >= RANK[least]
