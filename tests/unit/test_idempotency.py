"""Idempotency-Key: one request, one effect, one answer; durable, and never a guess."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from callers_double import Callers, callers

from coordinator.store.answers import KEPT_NS, MAX_KEYS, Answers, KeptAnswer
from coordinator.store.registry import SqlRegistry
from shared.errors import Refusal
from shared.refusal import RefusalCode

RESOURCES = "/api/v1/vms/vm-01-00/resources"
KEY = {"Idempotency-Key": "order-17"}
ANSWER = KeptAnswer(status=202, location="/x", media_type="application/json", body="{}")


@pytest.fixture
def asked() -> Iterator[Callers]:
    with callers() as found:
        yield found


def post(asked: Callers, body: Any, caller: str = "operator", headers: dict[str, str] = KEY, path: str = RESOURCES) -> httpx.Response:
    response: httpx.Response = asked.ask(caller, "POST", path, json=body, headers=headers)
    return response


def test_the_same_again_is_the_same_answer_and_one_effect(asked: Callers) -> None:
    first, again = post(asked, {"vcpus": 4}), post(asked, {"vcpus": 4})
    assert first.status_code == again.status_code == 202
    assert first.content == again.content
    assert first.headers["location"] == again.headers["location"]
    assert "idempotent-replayed" not in first.headers and again.headers["idempotent-replayed"] == "true"
    assert len(asked.fleet.sent) == 1
    results = [row["result"] for row in asked.ask("admin", "GET", "/api/v1/audit").json()["items"]]
    assert results == ["replayed", "ok"]


def test_another_request_with_the_key_is_refused(asked: Callers) -> None:
    post(asked, {"vcpus": 4})
    for other in (post(asked, {"vcpus": 5}), post(asked, {"vcpus": 4}, path="/api/v1/vms/vm-01-01/resources")):
        assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert len(asked.fleet.sent) == 1


def test_keys_are_each_callers_own(asked: Callers) -> None:
    assert post(asked, {"vcpus": 4}).status_code == post(asked, {"vcpus": 5}, caller="admin").status_code == 202
    assert len(asked.fleet.sent) == 2


def test_a_refusal_of_a_guard_is_kept_too(asked: Callers) -> None:
    first, again = post(asked, {"vcpus": 9}), post(asked, {"vcpus": 9})
    assert first.status_code == again.status_code == 422
    assert first.json() == again.json()
    assert again.headers["content-type"].startswith("application/problem+json")


def test_what_was_not_let_in_takes_no_key(asked: Callers) -> None:
    assert post(asked, {"vcpus": 4}, caller="viewer").status_code == 403
    assert post(asked, {"vcpus": 5}, caller="viewer").status_code == 403


def test_a_new_token_is_not_kept(asked: Callers) -> None:
    order = {"name": "portal", "role": "viewer"}
    first, again = (post(asked, order, caller="admin", path="/api/v1/tokens") for _ in range(2))
    assert first.json()["token"] and again.json()["token"] is None
    assert first.json()["made"] == again.json()["made"]


@pytest.mark.parametrize("key", ["", "x" * 129, "tab\tinside"])
def test_a_key_that_is_none(asked: Callers, key: str) -> None:
    response = post(asked, {"vcpus": 4}, headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["field"]) == (400, "Idempotency-Key")
    assert asked.fleet.sent == []


def test_a_second_while_the_first_is_under_way(asked: Callers) -> None:
    inside: list[httpx.Response] = []
    real = asked.fleet.adjust

    async def slow(vm_id: str, request: Any, actor: str) -> Any:
        transport = httpx.ASGITransport(app=asked.client.app)  # type: ignore[arg-type]
        headers = {"Authorization": f"Bearer {asked.tokens['operator']}", **KEY}
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet.example") as second:
            inside.append(await second.post(RESOURCES, json={"vcpus": 4}, headers=headers))
        return await real(vm_id, request, actor)

    asked.fleet.adjust = slow  # type: ignore[method-assign]
    assert post(asked, {"vcpus": 4}).status_code == 202
    assert (inside[0].status_code, inside[0].json()["code"]) == (409, "key_in_use")
    assert len(asked.fleet.sent) == 1


def test_a_bug_frees_the_key(asked: Callers) -> None:
    real = asked.fleet.adjust

    async def broken(*_: Any) -> Any:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    asked.fleet.adjust = broken  # type: ignore[method-assign]
    assert post(asked, {"vcpus": 4}).status_code == 500
    asked.fleet.adjust = real  # type: ignore[method-assign]
    assert post(asked, {"vcpus": 4}).status_code == 202


# -- the store


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SqlRegistry]:
    found = SqlRegistry(f"sqlite:///{tmp_path / 'registry.sqlite'}")
    yield found
    found.close()


def code_of(answers: Answers, *arguments: Any) -> RefusalCode:
    with pytest.raises(Refusal) as refused:
        answers.claim(*arguments)
    return refused.value.code


def test_answers_survive_a_restart_and_cut_short_ones_are_known(registry: SqlRegistry) -> None:
    before = Answers(registry.engine, "first start")
    assert before.claim("a", "done", "d", 1) is None
    before.settle("a", "done", ANSWER)
    assert before.claim("a", "cut", "d", 1) is None
    after = Answers(registry.engine, "second start")
    assert after.claim("a", "done", "d", 2) == ANSWER
    with pytest.raises(Refusal, match="restart") as refused:
        after.claim("a", "cut", "d", 2)
    assert refused.value.code == RefusalCode.KEY_IN_USE


def test_a_day_later_a_key_is_new(registry: SqlRegistry) -> None:
    answers = Answers(registry.engine, "p")
    answers.claim("a", "k", "d", 0)
    answers.settle("a", "k", ANSWER)
    assert answers.claim("a", "k", "d", KEPT_NS) == ANSWER
    assert answers.claim("a", "k", "other", KEPT_NS + 1) is None


def test_a_caller_has_only_so_many(registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_KEYS >= 1000
    monkeypatch.setattr("coordinator.store.answers.MAX_KEYS", 3)
    answers = Answers(registry.engine, "p")
    for n in range(3):
        answers.claim("a", f"k{n}", "d", 1)
    assert code_of(answers, "a", "k3", "d", 1) == RefusalCode.RATE_LIMITED
    assert answers.claim("b", "k3", "d", 1) is None
    answers.release("a", "k0")
    assert answers.claim("a", "k3", "d", 1) is None
