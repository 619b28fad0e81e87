"""The part of /api/v1 that is about alerts: what fires, rules in force, silences, acknowledgement. Handlers hold no logic of their own."""

from __future__ import annotations

from typing import Annotated, Any, Final

from litestar import Request, delete, get, post
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery, JSONBody, PathParameter, QueryParameter

from coordinator.learning.alerts import Alert
from coordinator.learning.silences import problem
from coordinator.service import problems
from coordinator.service.alerts import (
    AlertFilter,
    AlertNote,
    AlertPage,
    AlertRules,
    AlertsView,
    SeverityName,
    SilenceRequest,
    SilenceView,
    StateName,
)
from coordinator.service.own_view import seen
from coordinator.service.problems import InvalidValue, present
from coordinator.service.view import BOUNDS, Problem
from shared.refusal import RefusalCode

_LOW, _HIGH = BOUNDS["limit"]
_ID: Final[dict[str, Any]] = {"min_length": 1, "max_length": 128, "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$"}
Id = Annotated[str, PathParameter(**_ID)]
AskedId = Annotated[str | None, QueryParameter(**_ID)]
Client = Annotated[str | None, QueryParameter(max_length=256)]
Limit = Annotated[int, QueryParameter(ge=_LOW, le=_HIGH, description="At most so many")]
_TOKEN: Final[list[dict[str, list[str]]]] = [{"token": []}]


def _answer(description: str) -> ResponseSpec:
    return ResponseSpec(Problem, description=description, media_type=problems.PROBLEM_JSON, generate_examples=False)


_REFUSED: Final = {400: _answer("invalid_value: field, value and allowed"), 404: _answer("no such alert or silence")}
_WRITE_REFUSED: Final = _REFUSED | {401: _answer("unauthorized"), 429: _answer("rate_limited: too many silences")}


@get("/alerts", responses=_REFUSED, sync_to_thread=False)
def alerts(
    state: State,
    *,
    limit: Limit = 100,
    cursor: AskedId = None,
    status: FromQuery[StateName | None] = None,
    severity: FromQuery[SeverityName | None] = None,
    rule: AskedId = None,
    host: AskedId = None,
    vm: AskedId = None,
    client: Client = None,
) -> AlertPage:
    """Alerts that are pending or firing and those resolved within a day, newest first; `cursor` is the last page's `next_cursor`."""
    wanted = AlertFilter(state=status, severity=severity, rule=rule, host=host, vm=vm, client=client)
    return _view(state).alerts(wanted, limit, cursor)


@get("/alerts/rules", sync_to_thread=False)
def alert_rules(state: State) -> AlertRules:
    """The rules in force: threshold, hold time, what each means and what to do; and who is told of alerts."""
    return _view(state).alert_rules()


@get("/alerts/{alert_id:str}", responses=_REFUSED, sync_to_thread=False)
def alert(state: State, alert_id: Id) -> Alert:
    """One alert."""
    return _known(_view(state).alert(alert_id), alert_id)


@post("/alerts/{alert_id:str}/acknowledgement", status_code=200, security=_TOKEN, responses=_WRITE_REFUSED)
async def acknowledge_alert(request: Request[Any, Any, Any], state: State, alert_id: Id, data: JSONBody[AlertNote]) -> Alert:
    """Say that you look after an active alert: receivers are told who does, and are not reminded of it again."""
    return _known(await _view(state).acknowledge_alert(alert_id, data.comment, request.state["actor"]), alert_id)


@get("/silences", sync_to_thread=False)
def silences(state: State) -> list[SilenceView]:
    """Silences in force, to come, and ended within a week."""
    return list(_view(state).silences())


@post("/silences", status_code=201, security=_TOKEN, responses=_WRITE_REFUSED)
async def add_silence(request: Request[Any, Any, Any], state: State, data: JSONBody[SilenceRequest]) -> SilenceView:
    """Tell nobody of alerts that these matchers take, for a while. They are judged and shown all the same."""
    wrong = problem(data.matchers)
    if wrong is not None:
        raise InvalidValue("matchers", wrong, "1 to 16 matchers, of which one does not match an empty label")
    return await _view(state).add_silence(data, request.state["actor"])


@delete("/silences/{silence_id:str}", status_code=200, security=_TOKEN, responses=_WRITE_REFUSED)
async def end_silence(request: Request[Any, Any, Any], state: State, silence_id: Id) -> SilenceView:
    """End a silence now: who should have been told meanwhile of what still fires is told at the next look."""
    found = await _view(state).end_silence(silence_id, request.state["actor"])
    return present(found, RefusalCode.INVALID_VALUE, "silence_id", silence_id, "an id of /api/v1/silences")


ALERT_READS: Final = (alerts, alert_rules, alert, silences)
ALERT_WRITES: Final = (acknowledge_alert, add_silence, end_silence)


def _known(found: Alert | None, alert_id: str) -> Alert:
    return present(found, RefusalCode.INVALID_VALUE, "alert_id", alert_id, "an id of /api/v1/alerts")


def _view(state: State) -> AlertsView:
    return seen(state["view"])
