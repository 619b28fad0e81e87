"""What is registered, on disk: versions that two writers cannot both change, and a database that fails or holds what it should not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.learning.objectives import Objective
from coordinator.store.registry import SqlRegistry
from coordinator.store.tenancy import TenancyStore
from coordinator.tenancy.book import Book
from coordinator.tenancy.model import ApplicationSpec, ClientSpec, EventSpec, Kind, PolicySpec, SlaSpec, Spec
from shared.errors import ConfigError, HostError, Refusal
from shared.model import Mode
from shared.refusal import RefusalCode

SPECS: dict[Kind, Spec] = {
    Kind.CLIENT: ClientSpec(name="Zoë & Co", priority="high", budget_permille=2.5),
    Kind.APPLICATION: ApplicationSpec(client="a", name="Shop", signals=("queue_length",)),
    Kind.SLA: SlaSpec(name="Gold", objectives=(Objective(metric="ready", threshold_permille=20, share_permille=995.5),)),
    Kind.POLICY: PolicySpec(mode=Mode.OBSERVE, size_quantile=0.97, memory_ceiling_bytes=2**53),
    Kind.EVENT: EventSpec(name="Backup", start_s=5, duration_s=60, rrule="FREQ=DAILY"),
}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SqlRegistry]:
    made = SqlRegistry(f"sqlite:///{tmp_path}/registry.db")
    yield made
    made.close()


def refused(code: RefusalCode) -> object:
    return pytest.raises(Refusal, match=str(code))


@pytest.mark.parametrize("kind", list(Kind))
def test_what_was_stored_is_read_back_in_its_newest_version(registry: SqlRegistry, kind: Kind) -> None:
    store = TenancyStore(registry.engine)
    assert store.load() == Book()
    first = store.create(kind, "vm/one" if kind is Kind.POLICY else "one", SPECS[kind], "ops", 7)
    assert (first.version, first.created_ns, first.changed_by) == (1, 7, "ops")
    second = store.replace(kind, first, SPECS[kind], "eve", 9)
    assert (second.version, second.created_ns, second.changed_ns, second.changed_by) == (2, 7, 9, "eve")
    assert TenancyStore(registry.engine).load() == Book().with_rows(kind, [second])
    store.remove(kind, second)
    assert store.load() == Book()


def test_a_version_is_changed_once(registry: SqlRegistry, tmp_path: Path) -> None:
    """Two processes on one database."""
    other_registry = SqlRegistry(f"sqlite:///{tmp_path}/registry.db")
    one, other = TenancyStore(registry.engine), TenancyStore(other_registry.engine)
    row = one.create(Kind.CLIENT, "a", ClientSpec(name="A"), "ops", 1)
    with refused(RefusalCode.ALREADY_EXISTS):  # type: ignore[attr-defined]
        other.create(Kind.CLIENT, "a", ClientSpec(name="B"), "eve", 2)
    newer = one.replace(Kind.CLIENT, row, ClientSpec(name="B"), "ops", 2)
    for change in (lambda: other.replace(Kind.CLIENT, row, ClientSpec(name="C"), "eve", 3), lambda: other.remove(Kind.CLIENT, row)):
        with refused(RefusalCode.VERSION_CHANGED):  # type: ignore[attr-defined]
            change()
    assert other.load().clients["a"] == newer
    other_registry.close()


def test_an_id_that_is_used_again_is_another_thing(registry: SqlRegistry) -> None:
    store = TenancyStore(registry.engine)
    old = store.create(Kind.CLIENT, "a", ClientSpec(name="A"), "ops", 1)
    store.remove(Kind.CLIENT, old)
    new = store.create(Kind.CLIENT, "a", ClientSpec(name="A"), "ops", 2)
    assert old.etag != new.etag
    with refused(RefusalCode.VERSION_CHANGED):  # type: ignore[attr-defined]
        store.remove(Kind.CLIENT, old)


def test_what_cannot_be_read_is_named_and_not_left_out(registry: SqlRegistry) -> None:
    store = TenancyStore(registry.engine)
    store.create(Kind.POLICY, "fleet", PolicySpec(priority="high"), "ops", 1)
    with registry.engine.begin() as connection:
        connection.execute(text('UPDATE policy_levels SET spec = \'{"priority": "urgent"}\''))
    with pytest.raises(ConfigError, match=r"policy .fleet.: .*urgent"):
        store.load()


def test_a_database_that_fails_is_a_host_error(registry: SqlRegistry) -> None:
    store = TenancyStore(registry.engine)
    with registry.engine.begin() as connection:
        connection.execute(text("DROP TABLE clients"))
    for act in (store.load, lambda: store.create(Kind.CLIENT, "a", ClientSpec(name="A"), "ops", 1)):
        with pytest.raises(HostError, match="no such table"):
            act()
