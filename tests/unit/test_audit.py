"""The audit: a chain that shows every change, written before the answer, without secrets, by several processes at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from callers_double import Callers, callers
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, text, update

from coordinator.service.journalled import told
from coordinator.store.access_tables import audit
from coordinator.store.audit_chain import FIRST, AuditEntry, AuditRow, Broken, Walk, chained
from coordinator.store.audit_log import AuditLog
from coordinator.store.registry import SqlRegistry
from shared.config_access import AccessConfig
from shared.errors import HostError

RESOURCES = "/api/v1/vms/vm-01-00/resources"


def entry(n: int = 0, **changed: Any) -> AuditEntry:
    values: dict[str, Any] = {"time_ns": n, "actor": "ops", "role": "operator", "how": "token:1", "action": "PUT /x", "target": "/x"}
    return AuditEntry(**values | {"what": "{}", "status": 200, "result": "ok", "request_id": f"r{n}"} | changed)


def chain(length: int) -> list[AuditRow]:
    rows: list[AuditRow] = []
    for n in range(length):
        rows.append(chained(entry(n), n + 1, rows[-1].hash if rows else FIRST))
    return rows


def walked(rows: list[AuditRow]) -> Broken | None:
    walk = Walk()
    return walk.over(rows) or walk.end()


@given(length=st.integers(1, 12), data=st.data())
def test_any_change_of_any_row_is_named(length: int, data: st.DataObject) -> None:
    rows = chain(length)
    assert walked(rows) is None
    at = data.draw(st.integers(0, length - 1))
    field = data.draw(st.sampled_from(AuditRow.__struct_fields__))
    old = getattr(rows[at], field)
    new = old + 1 if isinstance(old, int) else "f" * 64 if len(old) == 64 else old + "x"
    broken = walked([*rows[:at], msgspec.structs.replace(rows[at], **{field: new}), *rows[at + 1 :]])
    assert broken is not None
    assert broken.sequence == (new if (at, field) == (0, "sequence") else at + 1)  # a chain may begin later


@given(length=st.integers(2, 12), data=st.data())
def test_a_row_that_is_gone_or_between_is_named(length: int, data: st.DataObject) -> None:
    rows, at = chain(length), data.draw(st.integers(0, length - 2))  # the newest one's loss only a noted tip can show
    gone = walked([*rows[:at], *rows[at + 1 :]])
    assert gone is not None and gone.sequence == at + 1
    put_between = chained(entry(99), at + 2, rows[at].hash)
    between = walked([*rows[: at + 1], put_between, *rows[at + 1 :]])
    assert between is not None and between.sequence == at + 3


def test_a_row_rewritten_with_its_hash_breaks_the_next() -> None:
    rows = chain(3)
    forged = chained(entry(1, actor="somebody else"), 2, rows[0].hash)
    broken = walked([rows[0], forged, rows[2]])
    assert broken is not None and broken.sequence == 3


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SqlRegistry]:
    found = SqlRegistry(f"sqlite:///{tmp_path / 'registry.sqlite'}")
    yield found
    found.close()


def test_several_writers_make_one_chain(registry: SqlRegistry, tmp_path: Path) -> None:
    """Each with its own connection, as the coordinator and command lines are."""
    others = [SqlRegistry(f"sqlite:///{tmp_path / 'registry.sqlite'}") for _ in range(3)]
    failed: list[BaseException] = []

    def write(engine: Any, who: str) -> None:
        try:
            for n in range(20):
                AuditLog(engine).append([entry(n, actor=who), entry(n, actor=who)])
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            failed.append(error)

    threads = [threading.Thread(target=write, args=(other.engine, f"w{i}")) for i, other in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert failed == []
    walk, broken = AuditLog(registry.engine).verify()
    assert (broken, walk.rows, walk.tip[0]) == (None, 120, 120)


def test_tampering_in_the_database_is_found(registry: SqlRegistry) -> None:
    log = AuditLog(registry.engine)
    log.append([entry(n) for n in range(2500)])  # more than two pages
    assert log.verify()[1] is None
    with registry.engine.begin() as connection:
        connection.execute(update(audit).where(audit.c.sequence == 1700).values(actor="nobody"))
    walk, broken = log.verify()
    assert broken is not None
    assert (broken.sequence, walk.rows) == (1700, 1699)


def test_the_oldest_rows_go_and_a_row_says_so(registry: SqlRegistry) -> None:
    log = AuditLog(registry.engine)
    log.append([entry(n) for n in range(30)])
    assert log.prune(30, 99) == 0
    assert (log.prune(10, 99), log.prune(11, 99)) == (20, 0)
    walk, broken = log.verify()
    assert (broken, walk.rows, walk.tip[0]) == (None, 11, 31)
    assert json.loads(log.newest(1)[0].what)["first"] == 21
    log.append([entry(50)])
    assert log.prune(5, 100) == 7
    assert log.verify()[1] is None
    with registry.engine.begin() as connection:
        connection.execute(delete(audit).where(audit.c.sequence < 30))
    broken = log.verify()[1]
    assert broken is not None and broken.sequence == 1


# -- through the API


@pytest.fixture
def asked() -> Iterator[Callers]:
    with callers() as found:
        yield found


def rows_of(asked: Callers, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked.ask("admin", "GET", "/api/v1/audit", params=query).json()["items"]
    return found


def test_a_write_is_a_row_with_who_what_and_what_before(asked: Callers) -> None:
    response = asked.ask("operator", "PUT", "/api/v1/hosts/kvm-01/mode", json={"mode": "observe"})
    (row,) = rows_of(asked)
    assert (row["actor"], row["role"], row["how"][:6]) == ("operator", "operator", "token:")
    assert (row["action"], row["target"]) == ("PUT /api/v1/hosts/{host_id}/mode", "/api/v1/hosts/kvm-01/mode")
    assert (row["status"], row["result"], row["request_id"]) == (200, "ok", response.headers["x-request-id"])
    what = json.loads(row["what"])
    assert what["asked"] == {"mode": "observe"}
    assert what["before"]["mode"] == "reactive"


@pytest.mark.parametrize(
    ("caller", "body", "status", "result"),
    [
        (None, {"vcpus": 2}, 401, "unauthorized"),
        ("viewer", {"vcpus": 2}, 403, "forbidden"),
        ("client", {"vcpus": 2}, 403, "forbidden"),
        ("operator", {"vcpus": 0}, 400, "invalid_value"),
        ("operator", {"vcpus": 9}, 422, "above_domain_maximum"),
    ],
)
def test_a_refused_write_is_a_row_with_its_code(asked: Callers, caller: str | None, body: Any, status: int, result: str) -> None:
    assert asked.ask(caller, "POST", RESOURCES, json=body).status_code == status
    (row,) = rows_of(asked)
    assert (row["actor"], row["status"], row["result"]) == (caller or "", status, result)
    let_in = status not in (401, 403)
    assert ("asked" in json.loads(row["what"])) is let_in  # of a stranger's body nothing is kept


def test_reads_leave_no_row(asked: Callers) -> None:
    for path in ("fleet", "vms", "nothing", "audit"):
        asked.ask("admin", "GET", f"/api/v1/{path}")
    assert rows_of(asked) == []


def test_no_secret_is_in_a_row(asked: Callers) -> None:
    made = asked.ask("admin", "POST", "/api/v1/tokens", json={"name": "portal", "role": "viewer"}).json()
    assert made["token"].startswith("tg_")
    asked.ask("operator", "POST", RESOURCES, json={"password": "hunter2", "vcpus": 1})
    everything = json.dumps(rows_of(asked))
    for secret in (made["token"], "hunter2", *asked.tokens.values()):
        assert secret not in everything
    nested = told(b'{"webhook": {"url": "https://u:p@x", "secret": null}, "list": [{"api_key": "k1"}]}')
    assert "u:p@x" not in str(nested) and "k1" not in str(nested)
    assert told(b"x" * 5000) == told(b"x" * 5000) != told(b"y" * 5000)


def test_pages_and_filters(asked: Callers) -> None:
    for n in range(7):
        asked.ask("operator" if n % 2 else "admin", "PUT", f"/api/v1/hosts/kvm-0{1 + n % 3}/pause", json={"paused": False})
    seen, cursor = [], {}
    while True:
        page = asked.ask("operator", "GET", "/api/v1/audit", params={"limit": 3, **cursor}).json()
        seen += [row["sequence"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    assert {row["actor"] for row in rows_of(asked, actor="operator")} == {"operator"}
    asked.ask("viewer", "PUT", "/api/v1/fleet/pause", json={"paused": False})
    assert [row["actor"] for row in rows_of(asked, result="forbidden")] == ["viewer"]
    assert len(rows_of(asked, since_s=0)) == 8
    assert rows_of(asked, since_s=2**33) == []
    assert {row["target"] for row in rows_of(asked, target="/api/v1/hosts/kvm-02")} == {"/api/v1/hosts/kvm-02/pause"}


def test_what_the_api_wrote_verifies(asked: Callers) -> None:
    for _ in range(5):
        asked.ask("operator", "PUT", "/api/v1/fleet/pause", json={"paused": False})
    walk, broken = asked.client.app.state["safeguards"].log.verify()
    assert (broken, walk.rows) == (None, 5)


def test_without_its_row_a_write_is_no_success(asked: Callers) -> None:
    guards = asked.client.app.state["safeguards"]
    with guards.log._engine.begin() as connection:
        connection.execute(text("ALTER TABLE audit RENAME TO away"))
    response = asked.ask("operator", "PUT", "/api/v1/fleet/pause", json={"paused": False})
    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
    with pytest.raises(HostError):
        guards.log.verify()
    with guards.log._engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO audit"))
    assert asked.ask("operator", "PUT", "/api/v1/fleet/pause", json={"paused": False}).status_code == 200
    assert len(rows_of(asked)) == 2  # what could not be written was kept for the next one


def test_refusals_for_a_rate_leave_one_row_a_minute() -> None:
    with callers(AccessConfig(writes_per_s=1)) as asked:
        answers = [asked.ask("operator", "PUT", "/api/v1/fleet/pause", json={"paused": False}) for _ in range(20)]
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(429) > 10
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["code"] == "rate_limited"
        assert [row["result"] for row in rows_of(asked)].count("rate_limited") == 1
