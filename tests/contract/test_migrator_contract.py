"""The migrator contract on the fake. On libvirt it runs in tests/realhost/test_migration.py, where two real hosts exist."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from migrator_contract import MigratorContract, Side
from migrator_fake import FakeMigrator

VM = "vm-1"


class TestFake(MigratorContract):
    @pytest.fixture
    def sides(self) -> tuple[Side, Side]:
        network: dict[str, FakeMigrator] = {}
        here, there = (FakeMigrator(uri, network) for uri in ("here", "there"))
        here.running.add(VM)
        return (
            Side(migrator=here, uri="here", runs=lambda: VM in here.running),
            Side(migrator=there, uri="there", runs=lambda: VM in there.running),
        )

    @pytest.fixture
    def vm_id(self) -> str:
        return VM

    @pytest.fixture
    def until(self) -> Callable[[Callable[[], object], str], object]:
        def wait(condition: Callable[[], object], what: str) -> object:
            end = time.monotonic() + 10
            while not (value := condition()):
                assert time.monotonic() < end, what
                time.sleep(0.001)
            return value

        return wait
