"""The Registry port: one suite on the fake, on SQLite and on a real PostgreSQL, then what only a database can get wrong, on both."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from fakes import MemoryRegistry
from msgspec.structs import replace
from plain_host import plain_capacity
from planned_moves import planned_move
from postgres_server import Postgres

from coordinator.fleet import Relocation
from coordinator.migration_plan import MigrationPlan, Status
from coordinator.model import Receipt
from coordinator.ports import Registry
from coordinator.store.registry import SqlRegistry
from shared.errors import ConfigError, HostError
from shared.model import Domain, Mode, Policy, Priority
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode

DAY_NS = 86_400 * 10**9
CAPACITY = plain_capacity()


DATABASES = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.server)]


@pytest.fixture(params=["memory", *DATABASES])
def registry(request: pytest.FixtureRequest) -> Registry:
    made: Registry = MemoryRegistry() if request.param == "memory" else SqlRegistry(database(request, request.param))
    request.addfinalizer(made.close)
    return made


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest) -> str:
    """An empty database."""
    return database(request, request.param)


@pytest.fixture
def sql(request: pytest.FixtureRequest, url: str) -> SqlRegistry:
    made = SqlRegistry(url, retention_days=2, max_rows=5)
    request.addfinalizer(made.close)
    return made


def database(request: pytest.FixtureRequest, kind: str) -> str:
    if kind == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/registry.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def domain(vm_id: str, name: str = "web") -> Domain:
    return Domain(vm_id=vm_id, name=name, vcpus_max=4, memory_max_bytes=2**30, policy=Policy(priority=Priority.CRITICAL))


def step(step_id: str = "s1", vm_id: str = "vm1") -> Step:
    return Step(id=step_id, vm_id=vm_id, kind=StepKind.CPU_QUOTA, value=1500, before=1000, deadline_ns=9)


def plan(sequence: int, host_id: str = "h1", epoch: int = 1, issued_ns: int = 0) -> Plan:
    return Plan(host_id=host_id, epoch=epoch, sequence=sequence, issued_ns=issued_ns, deadline_ns=9, steps=(step(),))


def receipt(receipt_id: str, vm_id: str = "vm1", issued_s: int = 300) -> Receipt:
    return Receipt(
        id=receipt_id,
        vm_id=vm_id,
        host_id="h1",
        issued_s=issued_s,
        shadow=True,
        steps=(step(),),
        inputs={"mean": 1.5, "unknown": None, "steps": [1, 2]},
        trail=("cpu quantile .95 = 1830",),
        refused=("below_floor: 10 < 20",),
    )


def test_a_migration_is_its_newest_state_and_documents_have_names(registry: Registry) -> None:
    move = planned_move("vm1", "h1", "h2", latest_ns=9)
    old, new = (MigrationPlan(id=f"m{n}", created_ns=n, moves=(move,), dropped={"vm9": "pinned"}) for n in (1, 2))
    for plan in (old, new, replace(old, status=Status.ABORTED, why="aborted by ops")):
        registry.save_migration(plan)
    assert [(plan.id, plan.status) for plan in registry.migrations(5)] == [("m2", Status.PROPOSED), ("m1", Status.ABORTED)]
    assert registry.migrations(1) == [new]
    assert registry.documents() == {}
    registry.save_document("a", "{}")
    registry.save_document("a", '{"x":1}')
    registry.save_document("b", "[]")
    assert registry.documents() == {"a": '{"x":1}', "b": "[]"}


def outcome(step_id: str, state: OutcomeState = OutcomeState.VERIFIED, vm_id: str = "vm1", finished_ns: int = 0) -> Outcome:
    code = RefusalCode.BELOW_FLOOR if state is OutcomeState.REFUSED else None
    return Outcome(step=step(step_id, vm_id), state=state, value=1500, code=code, finished_ns=finished_ns)


class TestEveryRegistry:
    def test_empty(self, registry: Registry) -> None:
        assert (registry.hosts(), registry.domains(), registry.modes(), registry.policies(), registry.token_names()) == ([], {}, {}, {}, {})
        assert (registry.plans(9), registry.receipts(9), registry.outcomes(9), registry.acked("h", "b")) == ([], [], [], -1)

    def test_epochs_rise(self, registry: Registry) -> None:
        assert [registry.next_epoch() for _ in range(3)] == [1, 2, 3]

    def test_hosts_are_replaced(self, registry: Registry) -> None:
        for host_id, boot_id, seen_ns in (("h2", "b1", 1), ("h1", "b1", 2), ("h2", "b2", 3)):
            registry.save_host(host_id, boot_id, CAPACITY, seen_ns)
        assert registry.hosts() == [
            {"host_id": "h1", "boot_id": "b1", "capacity": CAPACITY, "seen_ns": 2},
            {"host_id": "h2", "boot_id": "b2", "capacity": CAPACITY, "seen_ns": 3},
        ]

    def test_an_inventory_is_the_whole_truth_about_its_host(self, registry: Registry) -> None:
        registry.save_domains("h1", [domain("a"), domain("b")], 1)
        registry.save_domains("h2", [domain("c")], 1)
        registry.save_domains("h1", [domain("b", "renamed")], 2)
        assert registry.domains() == {"b": ("h1", domain("b", "renamed")), "c": ("h2", domain("c"))}
        registry.save_domains("h1", [], 3)
        assert registry.domains() == {"c": ("h2", domain("c"))}

    def test_a_migrated_vm_belongs_to_the_newest_sighting(self, registry: Registry) -> None:
        registry.save_domains("h1", [domain("a")], 1)
        registry.save_domains("h2", [domain("a")], 5)
        registry.save_domains("h1", [domain("a")], 3)
        assert registry.domains()["a"][0] == "h2"
        registry.save_domains("h1", [], 6)
        assert registry.domains()["a"][0] == "h2"

    def test_acked_never_goes_back(self, registry: Registry) -> None:
        for sequence in (5, 9, 7):
            registry.save_acked("h1", "b1", sequence)
        assert (registry.acked("h1", "b1"), registry.acked("h1", "b2"), registry.acked("h2", "b1")) == (9, -1, -1)

    def test_modes_policies_tokens(self, registry: Registry) -> None:
        registry.save_mode("h1", Mode.OBSERVE)
        registry.save_mode("h1", Mode.PREDICTIVE)
        policy = Policy(priority=Priority.HIGH, cpu_floor_millicores=500)
        registry.save_policy("vm1", Policy(excluded=True))
        registry.save_policy("vm1", policy)
        registry.save_token("ab12", "grafana", 5)
        assert (registry.modes(), registry.policies(), registry.token_names()) == (
            {"h1": Mode.PREDICTIVE},
            {"vm1": policy},
            {"ab12": "grafana"},
        )

    def test_pauses(self, registry: Registry) -> None:
        assert registry.pauses() == set()
        for host_id in ("h1", None, "h1"):
            registry.save_pause(host_id, True)
        assert registry.pauses() == {"h1", None}
        registry.save_pause("h1", False)
        registry.save_pause("h2", False)
        assert registry.pauses() == {None}

    def test_plans_newest_first(self, registry: Registry) -> None:
        plans = [plan(1), plan(2), plan(1, epoch=2), plan(3, "h2")]
        for one in [*plans, plan(2)]:
            registry.save_plan(one)
        assert registry.plans(10, "h1") == [plans[2], plans[1], plans[0]]
        assert registry.plans(2) == [plans[2], plans[3]]

    def test_receipts_newest_first(self, registry: Registry) -> None:
        registry.save_receipts([receipt("r1"), receipt("r2", issued_s=600), receipt("r3", "vm2", 900)])
        registry.save_receipts([receipt("r1")])
        registry.save_receipts([])
        assert registry.receipts(10, "vm1") == [receipt("r2", issued_s=600), receipt("r1")]
        assert registry.receipts(1) == [receipt("r3", "vm2", 900)]

    def test_outcomes_are_idempotent_by_host_step_and_state(self, registry: Registry) -> None:
        first = [outcome("s1"), outcome("s2", OutcomeState.REFUSED), outcome("s3", vm_id="vm2")]
        registry.save_outcomes("h1", first)
        registry.save_outcomes("h1", [outcome("s1"), outcome("s1", OutcomeState.UNDONE)])
        registry.save_outcomes("h2", [outcome("s1")])
        registry.save_outcomes("h2", [])
        assert [(host, one.step.id, one.state.value) for host, one in registry.outcomes(10)] == [
            ("h2", "s1", "verified"),
            ("h1", "s1", "undone"),
            ("h1", "s3", "verified"),
            ("h1", "s2", "refused"),
            ("h1", "s1", "verified"),
        ]
        assert registry.outcomes(10, "vm2") == [("h1", first[2])]


def test_everything_survives_a_restart(url: str) -> None:
    first = SqlRegistry(url)
    first.next_epoch()
    first.save_plan(plan(1))
    first.save_receipts([receipt("r1")])
    first.save_outcomes("h1", [outcome("s1")])
    first.close()
    second = SqlRegistry(url)
    assert second.next_epoch() == 2
    assert (second.receipt("r1"), second.receipt("r2")) == (receipt("r1"), None)
    assert (second.plans(9), second.receipts(9), second.outcomes(9)) == ([plan(1)], [receipt("r1")], [("h1", outcome("s1"))])
    second.close()


def test_prune_bounds_by_age_and_by_rows(sql: SqlRegistry) -> None:
    for day in range(10):
        sql.save_plan(plan(day + 1, issued_ns=day * DAY_NS))
        sql.save_outcomes("h1", [outcome(f"s{day}", finished_ns=day * DAY_NS)])
    sql.save_receipts([receipt(f"r{i}", issued_s=9 * 86_400 + i) for i in range(8)])
    stays = [("h1", 0), ("h2", DAY_NS), (None, 8 * DAY_NS), ("h1", 9 * DAY_NS)]
    sql.vm_hosts.save([Relocation(vm_id="vm1", host_id=host, at_ns=at_ns) for host, at_ns in stays])
    assert len(sql.steps(99)) == 1  # each of these plans holds the same step
    assert sql.prune(9 * DAY_NS) == 7 + 7 + 3 + 1
    assert [(stay.host_id, stay.until_ns) for stay in sql.vm_hosts.of("vm1", 9)] == [("h1", None), ("h2", 8 * DAY_NS)]
    assert [one.sequence for one in sql.plans(99)] == [10, 9, 8]
    assert [one.step.id for _, one in sql.outcomes(99)] == ["s9", "s8", "s7"]
    assert [one.id for one in sql.receipts(99)] == ["r7", "r6", "r5", "r4", "r3"]
    assert sql.prune(9 * DAY_NS) == 0


def test_numpy_in_a_receipt_is_stored_as_plain_numbers(sql: SqlRegistry) -> None:
    inputs = {"sigma": np.float32(0.5), "count": np.int64(3), "band": np.array([1.0, np.nan])}
    sql.save_receipts([Receipt(**{**{f: getattr(receipt("r1"), f) for f in Receipt.__dataclass_fields__}, "inputs": inputs})])  # type: ignore[arg-type]
    assert sql.receipts(1)[0].inputs == {"sigma": 0.5, "count": 3, "band": [1.0, None]}


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    SqlRegistry(f"sqlite:///{path}").close()
    database = sqlite3.connect(path)
    database.execute("UPDATE settings SET value = 99 WHERE name = 'schema_version'")
    database.commit()
    database.close()
    with pytest.raises(ConfigError, match="schema version 99, this program reads up to 1"):
        SqlRegistry(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/nowhere/registry.db", "oracle://host/db", "mysql://host/db"])
def test_a_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match="registry"):
        SqlRegistry(url)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database, but long enough to be read as a header of one" * 20)
    with pytest.raises(ConfigError, match="not a database"):
        SqlRegistry(f"sqlite:///{tmp_path}/registry.db")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_database_that_goes_away_is_a_host_error(tmp_path: Path, sql: SqlRegistry) -> None:
    database = sqlite3.connect(tmp_path / "registry.db")
    database.execute("DROP TABLE modes")
    database.commit()
    database.close()
    with pytest.raises(HostError, match="no such table"):
        sql.modes()
    with pytest.raises(HostError, match="no such table"):
        sql.save_mode("h1", Mode.OFF)


@pytest.mark.parametrize("limit", [0, -1, 100_001])
def test_impossible_limits(sql: SqlRegistry, limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit {limit}: allowed 1 to 100000"):
        sql.plans(limit)


def test_steps_of_plans_are_rows(sql: SqlRegistry) -> None:
    first, second = (
        Plan(host_id="h1", epoch=1, sequence=n, issued_ns=n, deadline_ns=9, steps=(step(f"s{n}"), step(f"t{n}", "vm2"))) for n in (1, 2)
    )
    for one in (first, second, first):
        sql.save_plan(one)
    assert sql.steps(9) == [("h1", 2, step("t2", "vm2")), ("h1", 2, step("s2")), ("h1", 1, step("t1", "vm2")), ("h1", 1, step("s1"))]
    assert sql.steps(1, "vm1") == [("h1", 2, step("s2"))]


class TestVmHosts:
    def told(self, sql: SqlRegistry, *stays: tuple[str | None, int]) -> list[tuple[str, int, int | None]]:
        sql.vm_hosts.save([Relocation(vm_id="vm1", host_id=host_id, at_ns=at_ns) for host_id, at_ns in stays])
        return [(stay.host_id, stay.since_ns, stay.until_ns) for stay in sql.vm_hosts.of("vm1", 9)]

    def test_a_stay_ends_where_the_next_begins(self, sql: SqlRegistry) -> None:
        assert self.told(sql, ("h1", 10)) == [("h1", 10, None)]
        assert self.told(sql, ("h2", 20)) == [("h2", 20, None), ("h1", 10, 20)]
        assert self.told(sql, (None, 30)) == [("h2", 20, 30), ("h1", 10, 20)]
        assert self.told(sql, (None, 35), ("h1", 40)) == [("h1", 40, None), ("h2", 20, 30), ("h1", 10, 20)]
        assert sql.vm_hosts.of("vm2", 9) == []
        assert len(sql.vm_hosts.of("vm1", 2)) == 2

    def test_what_is_told_again_or_late_changes_nothing(self, sql: SqlRegistry) -> None:
        once = self.told(sql, ("h1", 10), ("h2", 20))
        assert self.told(sql, ("h2", 20)) == once
        assert self.told(sql, ("h2", 25)) == once
        assert self.told(sql, ("h1", 15)) == once
        assert self.told(sql, ("h3", 20)) == [("h3", 20, None), ("h1", 10, 20)]  # within one moment: the last word counts

    def test_each_vm_has_its_own(self, sql: SqlRegistry) -> None:
        sql.vm_hosts.save([Relocation(vm_id=f"vm{n}", host_id=f"h{n}", at_ns=n) for n in range(300)])
        assert [sql.vm_hosts.of(f"vm{n}", 9)[0].host_id for n in (0, 299)] == ["h0", "h299"]


def test_what_is_written_together_lasts_together(sql: SqlRegistry) -> None:
    with sql.together():
        sql.save_plan(plan(1))
        sql.save_domains("h1", [domain("a")], 1)
        sql.save_outcomes("h1", [outcome("s1")])
        assert sql.plans(9) == [], "another connection sees nothing yet"
    assert (sql.plans(9), list(sql.domains()), len(sql.outcomes(9))) == ([plan(1)], ["a"], 1)
    with pytest.raises(HostError, match="half way"), sql.together():
        sql.save_plan(plan(2))
        raise HostError("half way")
    assert sql.plans(9) == [plan(1)]
    sql.save_plan(plan(3))
    assert [each.sequence for each in sql.plans(9)] == [3, 1]
