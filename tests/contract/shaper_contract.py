"""What every TrafficShaper must do. A subclass gives the fixture `shaper` and `tap`; where it is slow to refuse, that is its own matter."""

from __future__ import annotations

import pytest

from agent.ports import TrafficShaper
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MBIT, UNLIMITED

RX, TX = StepKind.NET_RX, StepKind.NET_TX


class ShaperContract:
    """Subclass as `TestX(ShaperContract)`."""

    @pytest.fixture
    def shaper(self) -> TrafficShaper:
        raise NotImplementedError

    @pytest.fixture
    def tap(self) -> str:
        """An interface that nobody shapes."""
        raise NotImplementedError

    @pytest.mark.parametrize("kind", [RX, TX])
    def test_ceiling_is_set_changed_and_removed(self, shaper: TrafficShaper, tap: str, kind: StepKind) -> None:
        assert shaper.ceiling(tap, kind) == UNLIMITED
        assert shaper.dropped_total(tap, kind) is None
        for bits_per_s in (2 * MBIT, 100 * MBIT, 40_000 * MBIT, 3 * MBIT):
            shaper.set_ceiling(tap, kind, bits_per_s)
            assert shaper.ceiling(tap, kind) == bits_per_s
        assert shaper.dropped_total(tap, kind) == 0
        shaper.set_ceiling(tap, kind, UNLIMITED)
        shaper.set_ceiling(tap, kind, UNLIMITED)
        assert shaper.ceiling(tap, kind) == UNLIMITED

    def test_directions_do_not_touch_each_other(self, shaper: TrafficShaper, tap: str) -> None:
        shaper.set_ceiling(tap, RX, 5 * MBIT)
        shaper.set_ceiling(tap, TX, 7 * MBIT)
        assert (shaper.ceiling(tap, RX), shaper.ceiling(tap, TX)) == (5 * MBIT, 7 * MBIT)
        shaper.set_ceiling(tap, RX, UNLIMITED)
        assert (shaper.ceiling(tap, RX), shaper.ceiling(tap, TX)) == (UNLIMITED, 7 * MBIT)

    def test_release_removes_both_and_may_be_repeated(self, shaper: TrafficShaper, tap: str) -> None:
        shaper.set_ceiling(tap, RX, 5 * MBIT)
        shaper.set_ceiling(tap, TX, 7 * MBIT)
        for _ in range(2):
            shaper.release(tap)
            assert (shaper.ceiling(tap, RX), shaper.ceiling(tap, TX)) == (UNLIMITED, UNLIMITED)

    @pytest.mark.parametrize("value", [0, 7_999, -2])
    def test_a_ceiling_that_would_kill_the_link_is_refused(self, shaper: TrafficShaper, tap: str, value: int) -> None:
        with pytest.raises(Refusal) as refusal:
            shaper.set_ceiling(tap, RX, value)
        assert refusal.value.code is RefusalCode.INVALID_VALUE
        assert shaper.ceiling(tap, RX) == UNLIMITED

    @pytest.mark.parametrize("kind", [RX, TX])
    def test_an_interface_that_does_not_exist(self, shaper: TrafficShaper, kind: StepKind) -> None:
        with pytest.raises(HostError, match="tap-none"):
            shaper.set_ceiling("tap-none", kind, MBIT)
        assert shaper.ceiling("tap-none", kind) == UNLIMITED
        assert shaper.dropped_total("tap-none", kind) is None
        shaper.release("tap-none")
