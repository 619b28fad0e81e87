"""Who a caller is at the edge, how often it may ask, and what the command line says of tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from callers_double import MANY, callers
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from coordinator.access_cli import audit, token
from coordinator.service import access
from coordinator.service.auth import STALE_S, TokenVerifier, new_token
from coordinator.service.callers import Caller
from coordinator.service.rates import BURST_S, MAX_CALLERS, Rate
from coordinator.store.tokens import Grant
from shared.config_access import AccessConfig
from shared.errors import ConfigError, HostError, Refusal
from shared.refusal import RefusalCode
from shared.roles import Role

# -- who


def test_a_wrong_token_is_refused_where_reads_are_open_and_another_scheme_ignored() -> None:
    with callers(open_reads=True) as asked:
        statuses = [
            asked.client.get("/api/v1/fleet", headers={"Authorization": header} if header else {}).status_code
            for header in ("", "Bearer tg_wrong", "Bearer", "Basic dXNlcjpwYXNz")
        ]
        assert statuses == [200, 401, 401, 200]
        assert asked.ask("client", "GET", "/api/v1/fleet").status_code == 403  # who shows a token is who it says, and no more


def test_a_route_without_a_rule_is_refused_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(access.RULES, ("GET", "/api/v1/fleet"))
    with callers(open_reads=True) as asked:
        for caller in (None, "viewer", "client", "operator", "admin"):
            assert asked.ask(caller, "GET", "/api/v1/fleet").status_code == 403


@given(role=st.sampled_from(list(Role)), least=st.sampled_from([Role.VIEWER, Role.OPERATOR, Role.ADMIN]))
def test_the_ladder(role: Role, least: Role) -> None:
    order = [Role.CLIENT, Role.VIEWER, Role.OPERATOR, Role.ADMIN]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(access.RULES, ("GET", "/x"), access.Rule(least))
        try:
            access.check(Caller(name="n", role=role, how="token:1"), "GET", "/x")
            passed = True
        except Refusal as refused:
            assert refused.code == RefusalCode.FORBIDDEN
            passed = False
    assert passed is (role is not Role.CLIENT and order.index(role) >= order.index(least))


def test_an_expired_and_a_revoked_token_stop() -> None:
    now_ns = [100]
    plain, hashed = new_token()
    grants = {hashed: Grant(id="1", name="n", expires_ns=200)}
    verifier = TokenVerifier(grants, wall_ns=lambda: now_ns[0])
    header = f"Bearer {plain}"
    assert asyncio.run(verifier.recognise(header)) == grants[hashed]
    now_ns[0] = 200
    assert asyncio.run(verifier.recognise(header)) is None
    grants[hashed] = Grant(id="1", name="n", revoked_ns=50)
    assert asyncio.run(verifier.recognise(header)) is None


def test_a_revocation_elsewhere_is_seen_within_seconds_and_an_outage_changes_nothing() -> None:
    plain, hashed = new_token()
    stored = {hashed: Grant(id="1", name="n")}
    now, away, reads = [100.0], [False], [0]

    def refresh() -> dict[str, Grant]:
        reads[0] += 1
        if away[0]:
            raise HostError("registry: away")
        return dict(stored)

    async def run() -> None:
        verifier = TokenVerifier(dict(stored), refresh=refresh, clock=lambda: now[0])
        header = f"Bearer {plain}"
        stored.clear()
        assert await verifier.recognise(header) is not None
        away[0], now[0] = True, now[0] + STALE_S
        assert await verifier.recognise(header) is not None
        away[0], now[0] = False, now[0] + STALE_S
        assert await verifier.recognise(header) is None
        before = reads[0]
        assert await asyncio.gather(*(verifier.recognise(f"Bearer wrong{n}") for n in range(50))) == [None] * 50
        assert reads[0] - before <= 1

    asyncio.run(run())


def test_last_use_is_noted_coarsely() -> None:
    with callers() as asked:
        for _ in range(5):
            asked.ask("viewer", "GET", "/api/v1/fleet")
        listed = {each["name"]: each for each in asked.ask("admin", "GET", "/api/v1/tokens").json()["items"]}
        assert listed["viewer"]["used_s"] > 1_700_000_000
        assert listed["operator"]["used_s"] is None
        assert "token" not in str([set(each) for each in listed.values()])


def test_a_token_made_over_http_counts_until_it_is_revoked() -> None:
    with callers() as asked:
        order = {"name": "portal", "role": "client", "client": "aurora", "expires_days": 1}
        made = asked.ask("admin", "POST", "/api/v1/tokens", json=order)
        assert (made.status_code, made.json()["made"]["client"]) == (201, "aurora")
        asked.tokens["portal"] = made.json()["token"]
        assert asked.ask("portal", "GET", "/api/v1/vms").json()["total"] == 8
        assert asked.ask("admin", "DELETE", made.headers["location"]).json()["items"][0]["name"] == "portal"
        assert asked.ask("portal", "GET", "/api/v1/vms").status_code == 401
        assert asked.ask("admin", "DELETE", made.headers["location"]).status_code == 404
        for wrong in ({"name": "x", "role": "client"}, {"name": "x", "role": "viewer", "client": "aurora"}, {"name": "x", "role": "king"}):
            assert asked.ask("admin", "POST", "/api/v1/tokens", json=wrong).status_code == 400


# -- how often


@given(st.lists(st.floats(0, 0.5), max_size=200), st.integers(1, 20))
def test_no_rate_is_ever_passed(gaps: list[float], per_s: int) -> None:
    rate, now, passed = Rate(per_s), 0.0, 0
    for gap in gaps:
        now += gap
        wait = rate.wait_s("me", now)
        assert 0.0 <= wait <= 1.0 / per_s + 1e-9
        passed += not wait
        assert passed <= per_s * (now + BURST_S) + 1e-6


def test_callers_do_not_slow_each_other_and_are_forgotten() -> None:
    rate = Rate(1)
    while not rate.wait_s("greedy", 0.0):
        pass
    assert rate.wait_s("other", 0.0) == 0.0
    assert rate.wait_s("greedy", 0.5) > 0.0
    assert rate.wait_s("greedy", 2.0) == 0.0
    for n in range(MAX_CALLERS + 10):
        rate.wait_s(str(n), 3.0)
    assert len(rate._left) == MAX_CALLERS


def test_wrong_tokens_are_slowed_and_right_ones_not() -> None:
    with callers(AccessConfig(requests_per_s=MANY.requests_per_s, failures_per_s=1)) as asked:
        wrong = [asked.client.get("/api/v1/fleet", headers={"Authorization": "Bearer tg_no"}) for _ in range(30)]
        assert {answer.status_code for answer in wrong} == {401, 429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in wrong if answer.status_code == 429)
        assert asked.ask("viewer", "GET", "/api/v1/fleet").status_code == 200


# -- the command line


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "coordinator.toml"
    path.write_text(f'state_dir = "{tmp_path / "state"}"\n')
    return str(path)


def test_tokens_and_their_audit_on_the_command_line(config: str) -> None:
    def run(group: object, *arguments: str) -> str:
        result = CliRunner().invoke(group, [*arguments, "--config", config], catch_exceptions=False)  # type: ignore[arg-type]
        assert result.exit_code == 0, result.output
        return result.output

    plain = run(token, "new", "portal", "--role", "client", "--client", "aurora", "--expires", "30").strip()
    assert plain.startswith("tg_")
    listed = run(token, "list")
    assert "client aurora" in listed and "in force" in listed and plain not in listed
    assert "revoked" in run(token, "revoke", "portal")
    assert "revoked" in run(token, "list")
    assert run(audit, "verify").startswith("whole: 2 rows, tip 2:")


@pytest.mark.parametrize("options", [("--role", "client"), ("--client", "aurora"), ("--role", "viewer", "--client", "aurora")])
def test_a_client_and_its_role_belong_together(config: str, options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--client"):
        CliRunner().invoke(token, ["new", "x", *options, "--config", config], catch_exceptions=False)


def test_revoking_what_is_not_there(config: str) -> None:
    with pytest.raises(ConfigError, match="nobody"):
        CliRunner().invoke(token, ["revoke", "nobody", "--config", config], catch_exceptions=False)
