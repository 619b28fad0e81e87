"""Tokens, audit, answers and operations on the databases that the registry runs on: the same suite on each."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from coordinator.service.operations import operation_id, operation_of
from coordinator.store.answers import Answers, KeptAnswer
from coordinator.store.audit_chain import AuditEntry
from coordinator.store.audit_log import AuditLog, Wanted
from coordinator.store.operations import OperationStore
from coordinator.store.registry import SqlRegistry
from coordinator.store.tokens import KEPT_NS, Grant, TokenStore, id_of
from shared.errors import Refusal
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.roles import Role

HASHES = [f"sha256:{n:016x}{n:048x}" for n in range(1, 6)]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/registry.sqlite"
    try:
        server = request.getfixturevalue("postgres")
    except pytest.FixtureLookupError:
        pytest.skip("these tests know of no PostgreSQL server")
    return str(server.new_database()).replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def registry(request: pytest.FixtureRequest, url: str) -> SqlRegistry:
    made = SqlRegistry(url)
    request.addfinalizer(made.close)
    return made


def entry(n: int, actor: str = "ops") -> AuditEntry:
    return AuditEntry(
        time_ns=n, actor=actor, role="admin", how="cli", action="a", target="/ü", what="{}", status=200, result="ok", request_id=f"r{n}"
    )


# -- tokens


def grant(token_hash: str, **changed: Any) -> Grant:
    return Grant(**{"id": id_of(token_hash), "name": "n", "created_ns": 1, "created_by": "me", **changed})


def test_a_grant_comes_back_whole(registry: SqlRegistry) -> None:
    store = TokenStore(registry.engine)
    made = grant(HASHES[0], role=Role.CLIENT, client="aurora", expires_ns=2**61, name="portal")
    store.save(HASHES[0], made, 5)
    assert store.grants() == {HASHES[0]: made}
    store.touch({HASHES[0]: 777, HASHES[1]: 888})
    assert store.grants()[HASHES[0]].used_s == 777


def test_tokens_of_before_are_operators_until_revoked(registry: SqlRegistry) -> None:
    registry.save_token(HASHES[0], "old", 3)
    store = TokenStore(registry.engine)
    assert store.grants() == {HASHES[0]: Grant(id=id_of(HASHES[0]), name="old", role=Role.OPERATOR, created_ns=3)}
    (gone,) = store.revoke("old", 9)
    assert (gone.revoked_ns, gone.holds(10)) == (9, False)
    assert store.grants() == {HASHES[0]: gone}
    assert registry.token_names() == {}
    assert store.revoke("old", 10) == ()


def test_revoking_by_id_takes_one_and_by_name_all(registry: SqlRegistry) -> None:
    store = TokenStore(registry.engine)
    for token_hash in HASHES[:3]:
        store.save(token_hash, grant(token_hash), 1)
    assert [gone.id for gone in store.revoke(id_of(HASHES[1]), 2)] == [id_of(HASHES[1])]
    left = {token_hash for token_hash, each in store.grants().items() if each.revoked_ns is None}
    assert left == {HASHES[0], HASHES[2]}
    store.revoke("n", 3)
    assert all(each.revoked_ns is not None for each in store.grants().values())


def test_what_is_long_over_goes(registry: SqlRegistry) -> None:
    store = TokenStore(registry.engine)
    store.save(HASHES[0], grant(HASHES[0], expires_ns=10), 1)
    store.save(HASHES[1], grant(HASHES[1]), 11 + KEPT_NS)
    assert set(store.grants()) == {HASHES[1]}


def test_only_so_many(registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.store.tokens.MAX_TOKENS", 2)
    store = TokenStore(registry.engine)
    for token_hash in HASHES[:2]:
        store.save(token_hash, grant(token_hash), 1)
    with pytest.raises(Refusal) as refused:
        store.save(HASHES[2], grant(HASHES[2]), 1)
    assert refused.value.code == RefusalCode.RATE_LIMITED


# -- audit


def test_several_writers_make_one_chain(registry: SqlRegistry, url: str) -> None:
    """Each with connections of its own, as the coordinator and command lines are."""
    others = [SqlRegistry(url) for _ in range(3)]
    failed: list[BaseException] = []

    def write(who: int) -> None:
        try:
            for n in range(15):
                AuditLog(others[who].engine).append([entry(n, f"w{who}"), entry(n, f"w{who}")])
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            failed.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert failed == []
    walk, broken = AuditLog(registry.engine).verify()
    assert (broken, walk.rows, walk.tip[0]) == (None, 90, 90)


def test_rows_are_found(registry: SqlRegistry) -> None:
    log = AuditLog(registry.engine)
    log.append([entry(n, "a" if n % 2 else "b") for n in range(6)])
    assert [row.sequence for row in log.newest(2)] == [6, 5]
    assert [row.sequence for row in log.newest(9, Wanted(before=4, actor="a", target="/"))] == [2]
    assert log.newest(9, Wanted(target="/%")) == []


# -- answers


def test_an_answer_comes_back_whole(registry: SqlRegistry) -> None:
    answers, kept = Answers(registry.engine, "p"), KeptAnswer(status=202, location=None, media_type="application/json", body='{"ü":1}')
    assert answers.claim("a", "k", "d", 1) is None
    answers.settle("a", "k", kept)
    assert answers.claim("a", "k", "d", 2) == kept


def test_of_many_at_once_one_has_the_key(registry: SqlRegistry, url: str) -> None:
    results: list[object] = []
    others = [SqlRegistry(url) for _ in range(4)]

    def claim(who: int) -> None:
        try:
            results.append(Answers(others[who].engine, f"p{who}").claim("a", "k", "d", 1))
        except Refusal as refused:
            results.append(refused.code)

    threads = [threading.Thread(target=claim, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert sorted(map(str, results)) == ["None", *["key_in_use"] * 3]


# -- operations


def plan_of(*kinds: StepKind) -> Plan:
    steps = tuple(Step(id=f"1-5-{n}", vm_id="v", kind=kind, value=4, before=2, deadline_ns=100 * 10**9) for n, kind in enumerate(kinds))
    return Plan(host_id="h", epoch=1, sequence=5, issued_ns=10**9, deadline_ns=100 * 10**9, steps=steps)


@pytest.mark.parametrize(
    ("states", "now_s", "expected"),
    [
        ([], 50, "pending"),
        ([OutcomeState.VERIFIED], 50, "running"),
        ([OutcomeState.VERIFIED] * 2, 50, "succeeded"),
        ([OutcomeState.VERIFIED, OutcomeState.REFUSED], 50, "partly"),
        ([OutcomeState.PARTIAL, OutcomeState.FAILED], 50, "partly"),
        ([OutcomeState.REFUSED, OutcomeState.FAILED], 50, "failed"),
        ([OutcomeState.SHADOWED] * 2, 50, "failed"),
        ([], 500, "failed"),
        ([OutcomeState.VERIFIED], 500, "partly"),
    ],
)
def test_how_far_an_operation_is(registry: SqlRegistry, states: list[OutcomeState], now_s: float, expected: str) -> None:
    store, plan = OperationStore(registry.engine), plan_of(StepKind.VCPUS, StepKind.MEMORY)
    registry.save_plan(plan)
    store.save(operation_id(plan), "v", "ops", plan)
    outcomes = [Outcome(step=step, state=state, finished_ns=7 * 10**9) for step, state in zip(plan.steps, states, strict=False)]
    registry.save_outcomes("h", outcomes)
    registry.save_outcomes("other host", [Outcome(step=plan.steps[0], state=OutcomeState.FAILED)])  # steps' ids are a host's own
    (found,) = store.newest(10, operation_id=operation_id(plan))
    operation = operation_of(found, now_s)
    assert (operation.state, operation.ordered_by, operation.vm_id) == (expected, "ops", "v")
    assert [step.state for step in operation.steps[len(states) :]] == ["pending" if now_s < 100 else "unheard"] * (2 - len(states))


def test_operations_of_some_vms(registry: SqlRegistry) -> None:
    store, plan = OperationStore(registry.engine), plan_of(StepKind.VCPUS)
    registry.save_plan(plan)
    for vm in ("v", "w", "x"):
        store.save(f"op-{vm}", vm, "ops", plan)
    assert {found.vm_id for found in store.newest(10, ("v", "x"))} == {"v", "x"}
    assert store.newest(10, ()) == []
    assert len(store.newest(2)) == 2


def test_receipts_and_outcomes_of_several_vms(registry: SqlRegistry) -> None:
    steps = [Step(id=f"s-{vm}", vm_id=vm, kind=StepKind.VCPUS, value=2, deadline_ns=1) for vm in ("v", "w", "x")]
    registry.save_outcomes("h", [Outcome(step=step, state=OutcomeState.VERIFIED) for step in steps])
    assert {outcome.step.vm_id for _, outcome in registry.outcomes(9, ("v", "x"))} == {"v", "x"}
    assert registry.outcomes(9, ()) == registry.receipts(9, ()) == []
