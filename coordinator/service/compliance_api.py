"""The service objectives' part of the HTTP API: who keeps them, what is left of error budgets, and the minutes themselves. Reads only."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter

from coordinator.learning.compliance import Kind
from coordinator.service import problems
from coordinator.service.compliance import KINDS, MOST_HOURS, ComplianceDetail, CompliancePage, ComplianceView
from coordinator.service.own_view import seen
from coordinator.service.problems import InvalidValue, present
from coordinator.service.view import BOUNDS, Problem
from shared.refusal import RefusalCode

_LOW, _HIGH = BOUNDS["limit"]
NOBODY: Final = "-"  # stands for the empty name in a path
_KINDS: Final = {"enum": list(KINDS)}
Limit = Annotated[int, QueryParameter(ge=_LOW, le=_HIGH, description="At most so many")]
AskedKind = Annotated[str, QueryParameter(max_length=16, description="client, application, vm or priority", schema_extra=_KINDS)]
PathKind = Annotated[str, PathParameter(max_length=16, description="client, application, vm or priority", schema_extra=_KINDS)]
Name = Annotated[str, PathParameter(min_length=1, max_length=256, description="Name of that kind; - for VMs of none")]
Cursor = Annotated[str | None, QueryParameter(max_length=256, description="The last page's next_cursor")]
Step = Annotated[int, QueryParameter(ge=60, le=3600, description="60, 300 or 3600", schema_extra={"enum": list(MOST_HOURS)})]
Hours = Annotated[int, QueryParameter(ge=1, le=max(MOST_HOURS.values()), description="Hours back: at most 24 at 60 s, 168 at 300 s")]
_REFUSED: Final = {
    400: ResponseSpec(
        Problem, description="invalid_value: field, value and allowed", media_type=problems.PROBLEM_JSON, generate_examples=False
    ),
    404: ResponseSpec(Problem, description="nothing is counted under this name", media_type=problems.PROBLEM_JSON, generate_examples=False),
}


@get("/compliance", responses=_REFUSED, sync_to_thread=False)
def compliance(state: State, kind: AskedKind = "client", limit: Limit = 100, cursor: Cursor = None) -> CompliancePage:
    """Objectives kept and error budgets left, over the period, by client, application, VM or priority, in the order of names."""
    return _view(state).compliance(_kind(kind), cursor, limit)


@get("/compliance/{kind:str}/{name:str}", responses=_REFUSED)
async def compliance_of(state: State, kind: PathKind, name: Name, resolution_s: Step = 300, hours: Hours = 6) -> ComplianceDetail:
    """One client, application, VM or priority: what it was promised, its budgets, burn rates and minutes over time."""
    most = MOST_HOURS.get(resolution_s)
    if most is None:
        raise InvalidValue("resolution_s", resolution_s, ", ".join(map(str, MOST_HOURS)))
    if hours > most:
        raise InvalidValue("hours", hours, f"1 to {most} at a resolution of {resolution_s} s")
    found = await _view(state).compliance_of(_kind(kind), "" if name == NOBODY else name, resolution_s, hours)
    return present(found, RefusalCode.INVALID_VALUE, "name", name, f"a name of /api/v1/compliance?kind={kind}")


COMPLIANCE_READS: Final = (compliance, compliance_of)


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise InvalidValue("kind", kind, ", ".join(KINDS))
    return kind


def _view(state: State) -> ComplianceView:
    return seen(state["view"])
