"""Reports: a client's over a time as JSON, CSV or a page to print, and the shadow report of the fleet. Reads only."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter

from coordinator.service import problems
from coordinator.service.compliance_api import NOBODY
from coordinator.service.own_view import seen
from coordinator.service.pages import asset
from coordinator.service.problems import InvalidValue, present
from coordinator.service.report_text import report_csv, report_html
from coordinator.service.reports import MOST_SHADOW_DAYS, Report, ReportsView, ShadowReport
from coordinator.service.view import Problem
from shared.refusal import RefusalCode
from shared.units import BUCKET_S

_WHEN: Final = "a day (2026-11-22) or a time (2026-11-22T14:00:00Z), of the last ten years"
_OLDEST_S, _NEWEST_S = 0, 2**33
Client = Annotated[str, PathParameter(min_length=1, max_length=256, description="The client's name; - for VMs of none")]
From = Annotated[str | None, QueryParameter(name="from", max_length=40, description=f"{_WHEN}; a week before `to` where it is not given")]
Until = Annotated[str | None, QueryParameter(name="to", max_length=40, description=f"{_WHEN}; now where it is not given")]
Format = Annotated[str | None, QueryParameter(name="format", max_length=8, description="json or csv; wins over the header Accept")]
Days = Annotated[int, QueryParameter(ge=1, le=MOST_SHADOW_DAYS, description="Days back")]


def _refused(description: str) -> ResponseSpec:
    return ResponseSpec(Problem, description=description, media_type=problems.PROBLEM_JSON, generate_examples=False)


_REFUSED: Final = {
    400: _refused("invalid_value: field, value and allowed"),
    404: _refused("no such client"),
    429: _refused("rate_limited: another report is being made"),
}
_REPORT: Final = {200: ResponseSpec(Report, description="the report; text/csv where asked for", generate_examples=False)}


@get("/reports/{client:str}", responses=_REPORT | _REFUSED)
async def report(  # noqa: PLR0917  # the framework calls it by name
    request: Request[Any, Any, Any], state: State, client: Client, from_: From = None, to: Until = None, format_: Format = None
) -> Response[Any]:
    """One client over a time: service objectives, use, cost, energy, forecast accuracy, savings, and how each number is computed."""
    if format_ not in (None, "json", "csv"):
        raise InvalidValue("format", format_, "json, csv")
    found = await _report(state, client, from_, to)
    if format_ == "csv" or (format_ is None and _wants_csv(request.headers.get("accept", ""))):
        headers = {"Content-Disposition": 'attachment; filename="report.csv"', "Vary": "Accept"}
        return Response(report_csv(found), media_type="text/csv; charset=utf-8", headers=headers)
    return Response(found, headers={"Vary": "Accept"})


@get("/shadow", responses=_REFUSED)
async def shadow(state: State, days: Days = 7) -> ShadowReport:
    """Had these hosts been predictive: violations, steps, memory and hosts, scored against the demand that came."""
    return await _view(state).shadow(days)


@get("/reports/{client:str}", media_type="text/html", include_in_schema=False)
async def report_page(state: State, client: Client, from_: From = None, to: Until = None) -> Response[str]:
    """The same to print."""
    found = await _report(state, client, from_, to)
    return Response(report_html(found, f"/static/report.css?v={asset('report.css').digest}"), media_type="text/html")


REPORT_READS: Final = (report, shadow)


def second_of(field: str, text: str | None) -> int | None:
    """Unix seconds of a day or time, the start of its 5 minutes. Raises InvalidValue."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        second = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        raise InvalidValue(field, text, _WHEN) from None
    if not _OLDEST_S <= second <= _NEWEST_S:
        raise InvalidValue(field, text, _WHEN)
    return second // BUCKET_S * BUCKET_S


def _wants_csv(accept: str) -> bool:
    """Whether CSV is named before JSON; quality values are not weighed."""
    named = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return "text/csv" in named and "application/json" not in named[: named.index("text/csv")]


async def _report(state: State, client: str, from_: str | None, to: str | None) -> Report:
    first, last = second_of("from", from_), second_of("to", to)
    found = await _view(state).report("" if client == NOBODY else client, first, last)
    return present(found, RefusalCode.INVALID_VALUE, "client", client, "a client of /api/v1/compliance?kind=client")


def _view(state: State) -> ReportsView:
    return seen(state["view"])
