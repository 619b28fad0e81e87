"""Ten thousand bad bodies, seeded: each is answered with a problem+json that says what is wrong, none with a fault of ours.

Good bodies of every route that takes one are cut, swollen, retyped, nested and flooded; what by chance is still good changes nothing that
counts. Routes are walked, so a new one is in here by itself, and fails until its good body is in routes_asked.BODIES.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from callers_double import callers
from routes_asked import BODIES, ROUTES, path_of

SEED, COUNT = 20_261_122, 10_000
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, -(2**70), 1e308, "", "x" * 300, "\u0000", "\ud7ff", "NaN", [], {}, [[]], {"a": {"b": []}}),
    *([None] * 50, {"vcpus": 1}, "2026-01-01", "../../etc/passwd", "' OR 1=1 --", "\u202e", 0.1),
)


def mutated(good: dict[str, Any], rng: random.Random) -> bytes:
    """One bad body."""
    match rng.randrange(9):
        case 0:
            return rng.randbytes(rng.randrange(1, 200))
        case 1:
            text = json.dumps(good).encode()
            return text[: rng.randrange(len(text))]
        case 2:
            return json.dumps(rng.choice(WRONG)).encode()
        case 3:
            field = rng.choice(list(good))
            return json.dumps({**good, field: rng.choice(WRONG)}).encode()
        case 4:
            return json.dumps({**good, "x" + str(rng.randrange(99)): rng.choice(WRONG)}).encode()
        case 5:
            return b"[" * rng.randrange(1, 3000)
        case 6:
            return json.dumps({name: value for name, value in good.items() if name != rng.choice(list(good))}).encode() + b"}"
        case 7:
            text = bytearray(json.dumps(good).encode())
            for _ in range(rng.randrange(1, 6)):
                text[rng.randrange(len(text))] = rng.randrange(256)
            return bytes(text)
        case _:
            return json.dumps(nested(good, rng)).encode()


def nested(value: Any, rng: random.Random) -> Any:
    """The same shape, some leaf of it wrong."""
    if isinstance(value, dict) and value:
        field = rng.choice(list(value))
        return {**value, field: nested(value[field], rng)}
    if isinstance(value, list) and value:
        return [nested(value[0], rng), *value[1:]] * rng.choice((1, 1, 600))
    return rng.choice(WRONG)


def test_every_route_that_takes_a_body_has_a_good_one() -> None:
    assert {route for route in ROUTES if route[0] in ("POST", "PUT", "PATCH")} == set(BODIES)


@pytest.mark.slow
def test_ten_thousand_bad_bodies() -> None:
    rng = random.Random(SEED)
    routes = sorted(BODIES)
    problems = 0
    with callers() as asked:
        while problems < COUNT:
            method, template = rng.choice(routes)
            body = mutated(BODIES[method, template], rng)
            headers = {"Idempotency-Key": f"k{rng.randrange(10**9)}"} if rng.random() < 0.1 else {}
            ids = {"operation_id": "1-1-kvm-01", "receipt_id": "r", "token_id": "t"}
            answer = asked.ask("admin", method, path_of(template, "vm-01-00", ids), content=body, headers=headers)
            if answer.status_code < 400:
                continue  # good by chance
            said = (method, template, body[:200], answer.text[:300])
            assert answer.status_code < 500, said
            assert answer.headers["content-type"] == "application/problem+json", said
            found = answer.json()
            assert found["type"].startswith("urn:tidegate:refusal:") and found["detail"] and found["status"] == answer.status_code, said
            problems += 1
