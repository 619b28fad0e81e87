"""What every Migrator must do: two hosts, one VM that runs on the first. A subclass gives the fixtures.

Each test leaves the VM running on the first host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from agent.ports import MigrationProgress, Migrator
from shared.errors import HostError, Refusal
from shared.model import Allocation
from shared.refusal import RefusalCode
from shared.units import MBIT, UNLIMITED

LIMITS = Allocation(vcpus=1, cpu_quota_millicores=600, memory_bytes=2**27, net_rx_bits_per_s=2 * MBIT, net_tx_bits_per_s=UNLIMITED)
NO_VM = "00000000-0000-0000-0000-000000000000"
FAST = 800 * MBIT
SLOW = 9 * MBIT  # the VM's memory takes many seconds


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two hosts. `uri`: where the other one finds it; `runs`: whether the VM runs there, asked of the host itself."""

    migrator: Migrator
    uri: str
    runs: Callable[[], bool]


class Moving(threading.Thread):
    """`migrate` in a thread, as the agent calls it."""

    def __init__(self, source: Side, target: Side, vm_id: str, bits_per_s: int) -> None:
        super().__init__(daemon=True)
        self.error: HostError | Refusal | None = None
        self.figures: MigrationProgress | None = None
        self._source, self._uri, self._vm_id, self._bits_per_s = source.migrator, target.uri, vm_id, bits_per_s
        self.start()

    def run(self) -> None:
        try:
            self.figures = self._source.migrate(self._vm_id, self._uri, self._bits_per_s, LIMITS)
        except (HostError, Refusal) as error:
            self.error = error


class MigratorContract:
    """Subclass as `TestX(MigratorContract)`."""

    @pytest.fixture
    def sides(self) -> tuple[Side, Side]:
        """Where the VM runs, and where it may go; both ways must work."""
        raise NotImplementedError

    @pytest.fixture
    def vm_id(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def until(self) -> Callable[[Callable[[], object], str], object]:
        """Waits for the first true value of a condition; AssertionError when it never comes."""
        raise NotImplementedError

    def test_there_and_back_with_its_limits(self, sides: tuple[Side, Side], vm_id: str) -> None:
        for source, target in (sides, sides[::-1]):
            figures = source.migrator.migrate(vm_id, target.uri, FAST, LIMITS)
            assert figures is None or figures.elapsed_ms > 0
            assert target.runs()
            assert not source.runs()
            assert source.migrator.progress(vm_id) is None
            assert target.migrator.progress(vm_id) is None
            assert target.migrator.arrived(vm_id) == LIMITS
            assert target.migrator.arrived(vm_id) == LIMITS  # until they are taken up
            target.migrator.taken_up(vm_id)
            assert target.migrator.arrived(vm_id) is None
            target.migrator.taken_up(vm_id)

    def test_progress_tuning_and_abort(
        self, sides: tuple[Side, Side], vm_id: str, until: Callable[[Callable[[], object], str], object]
    ) -> None:
        source, target = sides
        moving = Moving(source, target, vm_id, SLOW)
        until(lambda: (source.migrator.progress(vm_id) or MigrationProgress()).memory_processed_bytes, "the first bytes")
        progress = source.migrator.progress(vm_id)
        assert progress is not None
        assert progress.memory_remaining_bytes
        source.migrator.set_bandwidth(vm_id, 2 * SLOW)
        source.migrator.abort(vm_id)
        moving.join(60)
        assert not moving.is_alive()
        assert isinstance(moving.error, HostError)
        assert source.runs()
        assert not target.runs()
        assert source.migrator.progress(vm_id) is None
        assert source.migrator.arrived(vm_id) is None

    def test_more_bandwidth_ends_it_sooner(
        self, sides: tuple[Side, Side], vm_id: str, until: Callable[[Callable[[], object], str], object]
    ) -> None:
        source, target = sides
        moving = Moving(source, target, vm_id, SLOW)
        until(lambda: (source.migrator.progress(vm_id) or MigrationProgress()).memory_processed_bytes, "the first bytes")
        source.migrator.set_bandwidth(vm_id, UNLIMITED)
        moving.join(60)
        assert not moving.is_alive()
        assert moving.error is None
        target.migrator.migrate(vm_id, source.uri, FAST, LIMITS)
        source.migrator.taken_up(vm_id)

    def test_one_at_a_time(self, sides: tuple[Side, Side], vm_id: str, until: Callable[[Callable[[], object], str], object]) -> None:
        source, target = sides
        moving = Moving(source, target, vm_id, SLOW)
        until(lambda: source.migrator.progress(vm_id), "the migration to begin")
        with pytest.raises(Refusal) as refused:
            source.migrator.migrate(vm_id, target.uri, FAST, LIMITS)
        assert refused.value.code is RefusalCode.VM_BUSY
        source.migrator.abort(vm_id)
        moving.join(60)
        assert not moving.is_alive()
        assert source.runs()

    def test_nobody_there(self, sides: tuple[Side, Side], vm_id: str) -> None:
        source, target = sides
        with pytest.raises((HostError, Refusal)):
            source.migrator.migrate(vm_id, f"{target.uri}-nowhere", FAST, LIMITS)
        assert source.runs()
        assert source.migrator.arrived(vm_id) is None

    def test_no_such_vm(self, sides: tuple[Side, Side]) -> None:
        source, target = sides
        with pytest.raises(Refusal) as refused:
            source.migrator.migrate(NO_VM, target.uri, FAST, LIMITS)
        assert refused.value.code is RefusalCode.UNKNOWN_VM
        assert source.migrator.progress(NO_VM) is None
        assert source.migrator.arrived(NO_VM) is None
        source.migrator.abort(NO_VM)

    def test_nothing_to_abort(self, sides: tuple[Side, Side], vm_id: str) -> None:
        sides[0].migrator.abort(vm_id)
        sides[0].migrator.taken_up(vm_id)
        assert sides[0].runs()
