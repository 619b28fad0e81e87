"""When to act: the forecast mean of the bucket that matters against the allocation in force.

mean > allocation + k(priority) * stddev, for the bucket of now + the lever's lead time. k falls with priority; it is negative for the
highest, which so act before the mean reaches the allocation. Worked: allocation 1000, mean 950, stddev 100: LOW (k = 1) waits for a mean of
1100, CRITICAL (k = -1) acts from 900 on.
"""

from __future__ import annotations

from coordinator.sizing.policy import SizingPolicy
from shared.units import BUCKET_S, HORIZON_STEPS


def bucket_that_matters(lead_s: float) -> int:
    """Step index (0..11) of the bucket in which a change begun now takes effect."""
    return min(HORIZON_STEPS - 1, max(0, int(lead_s // BUCKET_S)))


def confidence(policy: SizingPolicy, priority: int) -> float:
    """The multiplier k of this priority."""
    return policy.confidence_multiplier[priority]


def fires(mean: float, stddev: float, allocation: float, multiplier: float) -> bool:
    """True when the trigger says act. Unknown mean or allocation: False. Unknown stddev counts as 0."""
    spread = stddev if stddev > 0.0 else 0.0  # NaN compares false
    return mean > allocation + multiplier * spread
