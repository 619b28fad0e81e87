"""Tokens: only their hash is kept, only the right one is recognised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.service.auth import MAX_TOKEN_CHARS, TokenVerifier, hash_token, new_token

HEADERS = (None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer " + "a" * (MAX_TOKEN_CHARS + 1), "Bearer ü")


def test_a_new_token_is_recognised_by_its_hash_alone() -> None:
    plain, stored = new_token()
    assert plain not in stored
    assert stored == hash_token(plain)
    assert TokenVerifier({stored: "ops"}).verify(plain) == "ops"


def test_tokens_differ_and_carry_256_bits() -> None:
    tokens = {new_token()[0] for _ in range(64)}
    assert len(tokens) == 64
    assert all(len(token) == len("tg_") + 43 for token in tokens)


def test_each_token_has_its_own_name() -> None:
    (first, first_hash), (second, second_hash) = new_token(), new_token()
    verifier = TokenVerifier({first_hash: "a", second_hash: "b"})
    assert (verifier.verify(first), verifier.verify(second)) == ("a", "b")


def test_the_hash_itself_is_no_token() -> None:
    _, stored = new_token()
    assert TokenVerifier({stored: "ops"}).verify(stored) is None


def test_a_live_mapping_takes_effect_at_once() -> None:
    plain, stored = new_token()
    names: dict[str, str] = {}
    verifier = TokenVerifier(names)
    assert verifier.verify(plain) is None
    names[stored] = "late"
    assert verifier.verify(plain) == "late"
    del names[stored]
    assert verifier.verify(plain) is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_bearer_scheme_ignores_case(scheme: str) -> None:
    plain, stored = new_token()
    assert TokenVerifier({stored: "ops"}).verify_header(f"{scheme} {plain}") == "ops"


@pytest.mark.parametrize("header", HEADERS)
def test_other_headers_are_not_recognised(header: str | None) -> None:
    plain, stored = new_token()
    sent = header.format(plain) if header else header
    assert TokenVerifier({stored: "ops"}).verify_header(sent) is None


@given(st.text())
def test_no_other_text_is_recognised(text: str) -> None:
    assert TokenVerifier({hash_token("tg_the-one"): "ops"}).verify(text) is None


def test_a_token_made_meanwhile_counts_at_once_and_wrong_ones_do_not_flood_the_registry() -> None:
    stored: dict[str, str] = {}
    reads: list[float] = []
    now = 100.0

    def refresh() -> dict[str, str]:
        reads.append(now)
        return dict(stored)

    verifier = TokenVerifier({}, refresh=refresh, clock=lambda: now)
    plain, hashed = new_token()
    stored[hashed] = "deploy"
    assert verifier.verify(plain) == "deploy"
    for _ in range(50):
        assert verifier.verify("tg_wrong") is None
    assert reads == [100.0]
    other, hashed = new_token()
    stored[hashed] = "other"
    assert verifier.verify(other) is None
    now += 1.0
    assert verifier.verify(other) == "other"
    assert (verifier.verify(plain), reads) == ("deploy", [100.0, 101.0])
