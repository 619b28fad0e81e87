"""A TrafficShaper that only remembers: what the contract holds the real one against, and what tests without a kernel run on."""

from __future__ import annotations

from shared.errors import HostError, Refusal
from shared.model import Priority
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import UNLIMITED

LEAST_BITS_PER_S = 8_000


class MemoryShaper:
    """TrafficShaper over dicts. `taps`: the interfaces that exist; `foreign`: (tap, direction) -> what somebody else has put there."""

    def __init__(self, taps: set[str], uplink_bits_per_s: int = 10_000_000_000) -> None:
        self.taps = taps
        self.foreign: dict[tuple[str, StepKind], str] = {}
        self.owners: dict[str, tuple[str, Priority]] = {}
        self._uplink = uplink_bits_per_s
        self._ceilings: dict[tuple[str, StepKind], int] = {}
        self._rates: dict[str, int] = {}

    def set_ceiling(self, tap: str, kind: StepKind, bits_per_s: int) -> None:
        if bits_per_s == UNLIMITED:
            self._ceilings.pop((tap, kind), None)
            return
        self._check(tap, kind, bits_per_s)
        self._ceilings[tap, kind] = bits_per_s // 8 * 8

    def ceiling(self, tap: str, kind: StepKind) -> int:
        return self._ceilings.get((tap, kind), UNLIMITED)

    def set_rate(self, tap: str, bits_per_s: int) -> None:
        if bits_per_s:
            self._check(tap, StepKind.NET_TX, bits_per_s)
            promised = sum(rate for other, rate in self._rates.items() if other != tap)
            if promised + bits_per_s > self._uplink:
                raise Refusal(RefusalCode.HOST_COMMIT_LIMIT, f"{bits_per_s} bits/s of {tap}: {promised} are promised to others")
            self._rates[tap] = bits_per_s // 8 * 8
        else:
            self._rates.pop(tap, None)

    def rate(self, tap: str) -> int:
        return self._rates.get(tap, 0)

    def assign(self, tap: str, client: str, priority: Priority) -> None:
        self.owners[tap] = client, priority

    def dropped_total(self, tap: str, kind: StepKind) -> int | None:
        shaped = (tap, kind) in self._ceilings or (kind is StepKind.NET_TX and tap in self._rates)
        return 0 if shaped else None

    def release(self, tap: str) -> None:
        for kind in (StepKind.NET_RX, StepKind.NET_TX):
            self._ceilings.pop((tap, kind), None)
        self._rates.pop(tap, None)
        self.owners.pop(tap, None)

    def _check(self, tap: str, kind: StepKind, bits_per_s: int) -> None:
        if bits_per_s < LEAST_BITS_PER_S:
            raise Refusal(RefusalCode.INVALID_VALUE, f"{bits_per_s} bits/s: at least {LEAST_BITS_PER_S}")
        if tap not in self.taps:
            raise HostError(f"interface {tap} does not exist")
        if (tap, kind) in self.foreign:
            raise Refusal(RefusalCode.FOREIGN_SHAPING, f"{tap}: {self.foreign[tap, kind]}")
