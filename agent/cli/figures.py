"""Figures as the command line shows them: short, with a unit that fits. Unknown is "-". Pure."""

from __future__ import annotations

from shared.units import GIB, MIB, UNLIMITED


def cores(millicores: int | None) -> str:
    """CPUs; "max" = no quota."""
    if millicores is None:
        return "-"
    return "max" if millicores == UNLIMITED else f"{millicores / 1000:.2f}"


def percent(permille: int | None) -> str:
    """Whole percent."""
    return "-" if permille is None else f"{permille / 10:.0f}"


def size(count: int | None) -> str:
    """Bytes in powers of 1024."""
    if count is None:
        return "-"
    return f"{count / GIB:.1f}G" if count >= 10 * GIB else f"{count / MIB:.0f}M" if count >= 10 * MIB else f"{count / 1024:.0f}K"


def bits(per_s: int | None) -> str:
    """Bits per second in powers of 1000."""
    if per_s is None:
        return "-"
    return f"{per_s / 10**9:.1f}G" if per_s >= 10**10 else f"{per_s / 10**6:.0f}M" if per_s >= 10**7 else f"{per_s / 1000:.0f}k"


def counted(n: int, what: str) -> str:
    """1 VM, 2 VMs."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
