"""How the parts of the API declare problems in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from litestar.openapi.datastructures import ResponseSpec

from coordinator.service.problems import PROBLEM_JSON
from coordinator.service.view import Problem


def refused(**words: str) -> dict[int, Any]:
    """`refused(s404="no such token")`: status -> its description, each a problem."""
    return {
        int(name[1:]): ResponseSpec(Problem, description=text, media_type=PROBLEM_JSON, generate_examples=False)
        for name, text in words.items()
    }
