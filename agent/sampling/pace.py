"""How long to wait for the next sampling round: the agent gives way where the host starves for CPU. Pure.

The period doubles per starved round, up to MOST times what is configured, and halves per calm one. Between the two thresholds it stays,
so that it does not swing. Rates divide by the time that really passed, so samples of another length stay right.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 4  # times the configured period: 20 s of 5, which still gives a 5-minute bucket 15 samples
CALM_PERMILLE: Final = 750  # of the threshold: below this the host has recovered
SLOW_SHARE: Final = 0.5  # of the period: a round that takes longer starves itself, whatever the host's pressure says


def next_period_s(
    current: float, configured: float, host_psi_cpu_permille: int | None, round_seconds: float, starved_permille: int
) -> float:
    """Seconds from the start of one round to that of the next.

    `current`: the period in force; `configured`: the owner's. Pressure None (PSI off), or 1000 for the threshold: only the round's own
    duration counts.
    5 s configured, pressure 900 of 800: 5 → 10 → 20 → 20; pressure 700: stays; pressure 500: 20 → 10 → 5.
    """
    pressure = 0 if host_psi_cpu_permille is None else host_psi_cpu_permille
    slow = round_seconds > current * SLOW_SHARE
    if slow or pressure > starved_permille:
        return min(configured * MOST, max(current, configured) * 2)
    if pressure * 1000 < starved_permille * CALM_PERMILLE:
        return max(configured, min(current, configured * MOST) / 2)
    return min(configured * MOST, max(current, configured))
