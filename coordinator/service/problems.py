"""Every error of the HTTP layer as RFC 9457 application/problem+json, with the product's own refusal code as its type.

Invariant: a refused value is answered with its field, the value and what is allowed; a bug of ours is answered without its inside
and logged with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar, get_args

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from coordinator.demand.signals import MAX_SIGNAL
from coordinator.model import SIGNALS
from coordinator.service.alerts import SeverityName, StateName
from coordinator.service.signals import MAX_READINGS
from coordinator.service.view import BOUNDS, GroupKind, Problem, Window
from coordinator.tenancy.model import ALLOWED
from shared.errors import HostError, Refusal
from shared.model import Mode
from shared.refusal import DESCRIPTIONS, RefusalCode
from shared.units import RESOURCES

AnyRequest = Request[Any, Any, Any]
Found = TypeVar("Found")

PROBLEM_JSON: Final = "application/problem+json"
URN: Final = "urn:tidegate:refusal:"
BODY_KEY: Final = "body"  # where edge.keep_body leaves the request's body for the wording of a refusal
MAX_ECHO_CHARS: Final = 64
RETRY_AFTER_S: Final = "5"  # about as often as the stores are tried again
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "kind": get_args(GroupKind),
    "window": get_args(Window),
    "status": get_args(StateName),
    "severity": get_args(SeverityName),
}

# A refusal is a conflict with the state of the host (409) unless the caller's input or identity is at fault.
STATUS: Final[dict[RefusalCode, int]] = {
    RefusalCode.UNKNOWN_VM: 404,
    RefusalCode.UNAUTHORIZED: 401,
    RefusalCode.INVALID_VALUE: 400,
    RefusalCode.BELOW_FLOOR: 422,
    RefusalCode.ABOVE_CEILING: 422,
    RefusalCode.ABOVE_DOMAIN_MAXIMUM: 422,
    RefusalCode.BELOW_WORKING_SET: 422,
    RefusalCode.STEP_TOO_LARGE: 422,
    RefusalCode.RATE_LIMITED: 429,
    RefusalCode.STORE_UNAVAILABLE: 503,
    RefusalCode.FORBIDDEN: 403,
    RefusalCode.KEY_REUSED: 422,
    RefusalCode.VERSION_REQUIRED: 428,
    RefusalCode.VERSION_CHANGED: 412,
}

_log = structlog.get_logger(__name__)
_at_field = re.compile(r"at `\$\.?([^`]*)`")
_in_readings = re.compile(r"readings\[(\d+)\]\.(\w+)")
_unknown_field = re.compile(r"unknown field `([^`]*)`")
_missing_field = re.compile(r"missing required field `([^`]*)`")
_of_struct = re.compile(r"^(\w+): (.*)")


class InvalidValue(Refusal):
    """INVALID_VALUE that names the field, the value as it came, and what is allowed. `status` where 400 is not the word."""

    def __init__(self, field: str, value: object, allowed: str, status: int = 400) -> None:
        self.field = field
        self.value = echo(value)
        self.allowed = allowed
        self.status = status
        super().__init__(RefusalCode.INVALID_VALUE, f"{field}: {self.value} is not allowed; allowed: {allowed}")


class NotFound(Refusal):
    """Nothing of that id. `code` is the nearest refusal code."""

    status = 404

    def __init__(self, code: RefusalCode, field: str, value: str, allowed: str) -> None:
        self.field = field
        self.value = echo(value)
        self.allowed = allowed
        super().__init__(code, f"{field}: {self.value} is not known; allowed: {allowed}")


def present(found: Found | None, code: RefusalCode, field: str, value: str, allowed: str) -> Found:
    """What was found. Raises NotFound, told as it tells it, where nothing was."""
    if found is None:
        raise NotFound(code, field, value, allowed)
    return found


def allowed_text(field: str) -> str:
    """What a field of the API accepts, in words."""
    if field in BOUNDS:
        low, high = BOUNDS[field]
        return f"an integer from {low} to {high}"
    if field in SIGNALS:
        return f"a number from 0 to {MAX_SIGNAL}"
    if field == "time_s":
        return "Unix seconds of the measurement, a number"
    if field == "readings":
        return f"1 to {MAX_READINGS} readings"
    if field == "mode":
        return ", ".join(Mode)
    if field == "resource":
        return ", ".join(RESOURCES)
    if field in _CHOICES:
        return ", ".join(_CHOICES[field])
    if field == "dry_run":
        return "true, false"
    if field == "name":
        return "at most 256 characters"
    if field in ALLOWED:
        return ALLOWED[field]
    return "an identifier of 1 to 128 letters, digits or . _ : @ -"


def echo(value: object) -> str:
    """A value as it came, short enough to repeat."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_ECHO_CHARS else text[: MAX_ECHO_CHARS - 1] + "…"


def refusal_response(request: AnyRequest, error: Refusal) -> Response[bytes]:
    """A guard said no."""
    status = getattr(error, "status", None) or STATUS.get(error.code, 409)
    problem = Problem(
        type=URN + error.code,
        title=DESCRIPTIONS[error.code],
        status=status,
        detail=error.detail,
        instance=request.url.path,
        code=error.code,
        field=getattr(error, "field", None),
        value=getattr(error, "value", None),
        allowed=getattr(error, "allowed", None),
        numbers=error.numbers,
    )
    headers = {"WWW-Authenticate": 'Bearer realm="tidegate"'} if status == HTTPStatus.UNAUTHORIZED else {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_AFTER_S
    if (wait_s := getattr(error, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(wait_s)
    return _response(problem, headers)


def unavailable_response(request: AnyRequest, error: HostError) -> Response[bytes]:
    """A database or disk that is away or full: in its own words, which name no secret; a write may have been carried out."""
    _log.error("http_request_without_store", path=request.url.path, method=request.method, reason=str(error))
    return refusal_response(request, Refusal(RefusalCode.STORE_UNAVAILABLE, str(error)))


def http_error_response(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """What the framework itself refused: bad values become INVALID_VALUE, the rest keeps its HTTP meaning."""
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return refusal_response(request, _invalid_value(request, error))
    if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return refusal_response(request, InvalidValue("body", "its size", "at most 65536 bytes", status=413))
    status = HTTPStatus(error.status_code)
    detail = f"{request.method} {echo(request.url.path)}: {status.description or status.phrase}"
    problem = Problem(type="about:blank", title=status.phrase, status=status, detail=detail, instance=request.url.path)
    return _response(problem, {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"})


def bug_response(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Anything else is a bug: the log gets all of it, the caller none."""
    if isinstance(error, RecursionError):
        return refusal_response(request, InvalidValue("body", "its nesting", "a flat JSON object"))
    _log.error("http_request_failed", path=request.url.path, method=request.method, exc_info=error)
    problem = Problem(
        type="about:blank", title="Internal Server Error", status=500, detail="a bug of ours; the log has it", instance=request.url.path
    )
    return _response(problem, {})


def _invalid_value(request: AnyRequest, error: HTTPException) -> InvalidValue:
    """Find out which field it was: Litestar names query and path parameters, msgspec names the place in the body."""
    first = next(iter(error.extra), None) if isinstance(error.extra, list) else None
    key = str(first.get("key", "")) if isinstance(first, dict) else ""
    if key in request.query_params:
        return InvalidValue(key, str(request.query_params[key]), allowed_text(key))
    if key in request.path_params:
        return InvalidValue(key, str(request.path_params[key]), allowed_text(key))
    message = str(first["message"]) if isinstance(first, dict) and "message" in first else str(error.detail)
    raw = request.state.get(BODY_KEY)
    body = _json_object(raw)
    if (told := of_validation(message, body, key)) is not None:
        return told
    if found := _at_field.search(message):
        key = found[1] or key
    if key in body:
        return InvalidValue(key, body[key], allowed_text(key))
    if (place := _in_readings.fullmatch(key)) and len(readings := body.get("readings", ())) > int(place[1]):
        return InvalidValue(key, readings[int(place[1])].get(place[2]), allowed_text(place[2]))
    return InvalidValue("body", _without_internals(message) if raw else "nothing", "a JSON object as in /openapi.json")


def of_validation(message: str, body: Mapping[str, Any], key: str = "") -> InvalidValue | None:
    """What msgspec found wrong with a body, as field, value and what is allowed; None where it does not say which field it was."""
    if unknown := _unknown_field.search(message):
        return InvalidValue(unknown[1], "a field of this name", "only the fields of the schema in /openapi.json")
    if (missing := _missing_field.search(message)) and missing[1] not in body:
        return InvalidValue(missing[1], "nothing", allowed_text(missing[1]))
    if (rule := _of_struct.search(message)) and rule[1] in ALLOWED:  # what a struct itself refused names its field first
        return InvalidValue(rule[1], body.get(rule[1]), f"{allowed_text(rule[1])} ({rule[2].strip()})")
    found = _at_field.search(message)
    path = found[1] if found and found[1] else key
    top, last = path.partition(".")[0].partition("[")[0], path.rpartition(".")[2].partition("[")[0]
    if top in body and last in ALLOWED:
        return InvalidValue(path, _at_path(body, path), allowed_text(last))
    return None


def _at_path(body: Any, path: str) -> object:
    """What stands at `objectives[0].metric`; the nearest thing above it where there is nothing."""
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            body = body[int(part)] if isinstance(body, list) else body[part]
        except (KeyError, IndexError, TypeError, ValueError):
            break
    return body


def _json_object(raw: object) -> dict[str, Any]:
    if not isinstance(raw, bytes):
        return {}
    try:
        parsed = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _without_internals(message: str) -> str:
    return message.rsplit("msgspec.", maxsplit=1)[-1].strip() or "what came"


def _response(problem: Problem, headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(problem), status_code=problem.status, media_type=PROBLEM_JSON, headers=headers)
