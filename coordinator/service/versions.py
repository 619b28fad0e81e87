"""Conditional requests (RFC 9110, 13): a change names the version that it is meant for; nobody overwrites what he has not seen."""

from __future__ import annotations

from typing import Any

from litestar import Request

from coordinator.tenancy.model import Row, Spec
from shared.errors import Refusal
from shared.refusal import RefusalCode

AnyRequest = Request[Any, Any, Any]


def expected(request: AnyRequest, row: Row[Spec]) -> Row[Spec]:
    """The row, if If-Match means it. Raises Refusal: VERSION_REQUIRED without the header, VERSION_CHANGED with another version."""
    header = request.headers.get("if-match")
    if header is None:
        raise Refusal(RefusalCode.VERSION_REQUIRED, f"If-Match is missing; allowed: {row.etag} (the ETag of a GET), or * for any version")
    if not _names(header, row.etag):
        raise Refusal(RefusalCode.VERSION_CHANGED, f"If-Match: {header[:64]} is not the newest version; the newest is {row.etag}")
    return row


def unchanged(request: AnyRequest, row: Row[Spec]) -> bool:
    """Whether the reader has this version already (If-None-Match)."""
    header = request.headers.get("if-none-match")
    return header is not None and _names(header, row.etag)


def creates(request: AnyRequest) -> bool:
    """Whether the writer means something that is not there yet (If-None-Match: *)."""
    return request.headers.get("if-none-match", "").strip() == "*"


def _names(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (part.strip() for part in header.split(","))
