"""What every TrafficShaper must do. A subclass gives the fixture `shaper` and `tap`; where it is slow to refuse, that is its own matter."""

from __future__ import annotations

import pytest

from agent.ports import TrafficShaper
from shared.errors import HostError, Refusal
from shared.model import Priority
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

    def test_guarantee_is_set_changed_and_removed_beside_the_ceiling(self, shaper: TrafficShaper, tap: str) -> None:
        assert shaper.rate(tap) == 0
        shaper.set_rate(tap, 3 * MBIT)
        assert (shaper.rate(tap), shaper.ceiling(tap, TX)) == (3 * MBIT, UNLIMITED)
        shaper.set_ceiling(tap, TX, 9 * MBIT)
        shaper.set_rate(tap, 8_000)
        assert (shaper.rate(tap), shaper.ceiling(tap, TX)) == (8_000, 9 * MBIT)
        shaper.set_ceiling(tap, TX, UNLIMITED)
        assert (shaper.rate(tap), shaper.ceiling(tap, TX)) == (8_000, UNLIMITED)
        shaper.set_rate(tap, 0)
        assert (shaper.rate(tap), shaper.ceiling(tap, TX), shaper.ceiling(tap, RX)) == (0, UNLIMITED, UNLIMITED)

    def test_release_ends_the_guarantee(self, shaper: TrafficShaper, tap: str) -> None:
        shaper.set_rate(tap, MBIT)
        shaper.release(tap)
        assert shaper.rate(tap) == 0

    @pytest.mark.parametrize("value", [7_999, -1])
    def test_a_guarantee_of_next_to_nothing_is_refused(self, shaper: TrafficShaper, tap: str, value: int) -> None:
        with pytest.raises(Refusal) as refusal:
            shaper.set_rate(tap, value)
        assert refusal.value.code is RefusalCode.INVALID_VALUE
        assert shaper.rate(tap) == 0

    def test_more_guarantees_than_the_uplink_carries_are_refused(self, shaper: TrafficShaper, tap: str) -> None:
        """The uplink of every shaper under contract carries 10 Gbit/s."""
        shaper.set_rate(tap, 2 * MBIT)
        with pytest.raises(Refusal) as refusal:
            shaper.set_rate(tap, 10_001 * MBIT)
        assert refusal.value.code is RefusalCode.HOST_COMMIT_LIMIT
        assert shaper.rate(tap) == 2 * MBIT

    def test_client_and_priority_limit_nothing(self, shaper: TrafficShaper, tap: str) -> None:
        shaper.assign(tap, "acme", Priority.HIGH)
        assert (shaper.rate(tap), shaper.ceiling(tap, TX)) == (0, UNLIMITED)
        shaper.set_ceiling(tap, TX, 5 * MBIT)
        shaper.set_rate(tap, 2 * MBIT)
        for client, priority in (("acme", Priority.LOW), ("other", Priority.LOW), ("", Priority.CRITICAL)):
            for _ in range(2):
                shaper.assign(tap, client, priority)
                assert (shaper.rate(tap), shaper.ceiling(tap, TX)) == (2 * MBIT, 5 * MBIT)

    @pytest.mark.parametrize("kind", [RX, TX])
    def test_an_interface_that_does_not_exist(self, shaper: TrafficShaper, kind: StepKind) -> None:
        with pytest.raises(HostError, match="tap-none"):
            shaper.set_ceiling("tap-none", kind, MBIT)
        assert shaper.ceiling("tap-none", kind) == UNLIMITED
        assert shaper.dropped_total("tap-none", kind) is None
        with pytest.raises(HostError, match="tap-none"):
            shaper.set_rate("tap-none", MBIT)
        assert shaper.rate("tap-none") == 0
        shaper.assign("tap-none", "acme", Priority.LOW)
        shaper.release("tap-none")
