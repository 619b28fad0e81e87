"""The OpenAPI document as it is served and committed: the framework's, put right where it is not what the service does.

Two things: a `tuple[X, ...]` with bounds comes out as "X or anything", which nothing but X is; and every path of /api/v1 can be refused at
the door, whatever its handler declares, each that takes a body for a body that is too large.
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from coordinator.service.problems import PROBLEM_JSON

AT_THE_DOOR: Final = {
    "401": "unauthorized: no valid token or certificate",
    "403": "forbidden: the caller's role does not allow it",
    "429": "rate_limited: Retry-After says for how long",
    "503": "the registry does not answer",
}
TOO_LARGE: Final = {"413": "invalid_value: the body is larger than is taken"}


def put_right(schema: dict[str, Any]) -> dict[str, Any]:
    """The same document, changed in place."""
    _items(schema)
    for path, verbs in schema.get("paths", {}).items():
        for operation in verbs.values() if path.startswith("/api/v1/") else ():
            refused = AT_THE_DOOR | (TOO_LARGE if "requestBody" in operation else {})
            for status, description in refused.items():
                content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                operation["responses"].setdefault(status, {"description": description, "content": content})
    return schema


class Document(JsonRenderPlugin):
    """Serves it."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """As JSON."""
        return super().render(request, put_right(openapi_schema))


def _items(part: object) -> None:
    if isinstance(part, dict):
        items = part.get("items")
        choices: list[Any] = items.get("oneOf", []) if isinstance(items, dict) else []
        if len(choices) == 2 and choices[1] == {}:
            part["items"] = choices[0]
        for value in part.values():
            _items(value)
    elif isinstance(part, list):
        for value in part:
            _items(value)
