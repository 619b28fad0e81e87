"""The HTTP API's part about itself: who the caller is, tokens (for admins) and the audit (for operators and admins)."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter, QueryParameter

from coordinator.service import journalled
from coordinator.service.access_views import AuditPage, TokenList, TokenMade, TokenOrder, WhoAmI, audit_view, token_view
from coordinator.service.answered import refused
from coordinator.service.auth import new_token
from coordinator.service.problems import InvalidValue, NotFound
from coordinator.service.safeguards import Safeguards, caller_of
from coordinator.service.view import BOUNDS
from coordinator.store.audit_log import Wanted
from coordinator.store.tokens import Grant, id_of
from shared.refusal import RefusalCode
from shared.roles import Role
from shared.units import NS_PER_S

_LOW, _HIGH = BOUNDS["limit"]
TokenId = Annotated[str, PathParameter(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
Limit = Annotated[int, QueryParameter(ge=_LOW, le=_HIGH, description="At most so many")]
Sequence = Annotated[int | None, QueryParameter(ge=1, le=2**53, description="The last page's next_cursor")]
Actor = Annotated[str | None, QueryParameter(max_length=256, description="Rows of this name alone")]
Target = Annotated[str | None, QueryParameter(max_length=256, description="Rows whose path begins so")]
Result = Annotated[str | None, QueryParameter(max_length=64, description="Rows of this result alone: ok, replayed, or a refusal's code")]
Since = Annotated[int | None, QueryParameter(ge=0, le=2**33, description="Rows of this moment and later, Unix seconds of the real clock")]
_TOKEN: Final[list[dict[str, list[str]]]] = [{"token": []}]
_DENIED: Final = refused(s400="invalid_value: field, value and allowed", s401="unauthorized", s403="forbidden", s429="rate_limited")
_KEYS: Final = refused(s409="key_in_use", s422="key_reused")


@get("/whoami", responses=refused(s401="unauthorized"), sync_to_thread=False)
def whoami(request: Request[Any, Any, Any]) -> WhoAmI:
    """Who the caller is: name, role, client, and by what it is known."""
    caller = caller_of(request.scope["state"])
    return WhoAmI(name=caller.name, role=caller.role, client=caller.client, how=caller.how)


@get("/tokens", security=_TOKEN, responses=_DENIED)
async def tokens(state: State) -> TokenList:
    """Who has a token: name, role, client, end, and roughly when it was used last."""
    guards = _guards(state)
    found = await guards.run(guards.store.grants)
    return TokenList(items=tuple(token_view(grant) for grant in sorted(found.values(), key=lambda grant: (grant.created_ns, grant.id))))


@post("/tokens", status_code=201, security=_TOKEN, responses=_DENIED | _KEYS)
async def make_token(request: Request[Any, Any, Any], state: State, data: JSONBody[TokenOrder]) -> Response[TokenMade]:
    """Make a token. It is shown in this answer and never again."""
    if (data.role is Role.CLIENT) != (data.client is not None):
        raise InvalidValue("client", data.client, "a client's name with role client, nothing with the others")
    guards = _guards(state)
    plain, hashed = new_token()
    now_ns = guards.wall_ns()
    grant = Grant(
        id=id_of(hashed),
        name=data.name,
        role=data.role,
        client=data.client,
        created_ns=now_ns,
        created_by=caller_of(request.scope["state"]).name,
        expires_ns=None if data.expires_days is None else now_ns + int(data.expires_days * 86_400 * NS_PER_S),
    )
    await guards.run(guards.store.save, hashed, grant, now_ns)
    await guards.tokens.reload()
    made = TokenMade(token=plain, made=token_view(grant))
    request.state[journalled.KEPT_KEY] = msgspec.json.encode(msgspec.structs.replace(made, token=None))
    return Response(made, status_code=201, headers={"Location": f"/api/v1/tokens/{grant.id}"})


@delete("/tokens/{token_id:str}", status_code=200, security=_TOKEN, responses=_DENIED | refused(s404="no such token in force"))
async def revoke_token(request: Request[Any, Any, Any], state: State, token_id: TokenId) -> TokenList:
    """Revoke the token of this id, or all of this name. It stops at once."""
    guards = _guards(state)
    gone = await guards.run(guards.store.revoke, token_id, guards.wall_ns())
    if not gone:
        raise NotFound(RefusalCode.INVALID_VALUE, "token_id", token_id, "an id or name of a token of /api/v1/tokens that is in force")
    await guards.tokens.reload()
    request.state[journalled.BEFORE_KEY] = [{"id": grant.id, "name": grant.name, "role": grant.role} for grant in gone]
    return TokenList(items=tuple(map(token_view, gone)))


@get("/audit", security=_TOKEN, responses=_DENIED)
async def audit(
    *,
    state: State,
    limit: Limit = 100,
    cursor: Sequence = None,
    actor: Actor = None,
    target: Target = None,
    result: Result = None,
    since_s: Since = None,
) -> AuditPage:
    """Every write and every refused one, newest first, each with its place in the chain."""
    guards = _guards(state)
    since_ns = None if since_s is None else since_s * NS_PER_S
    rows = await guards.run(guards.log.newest, limit, Wanted(cursor, actor, target, result, since_ns))
    last = rows[-1].sequence if len(rows) == limit and rows[-1].sequence > 1 else None
    return AuditPage(items=tuple(map(audit_view, rows)), next_cursor=last)


ACCESS_HANDLERS: Final = (whoami, tokens, make_token, revoke_token, audit)


def _guards(state: State) -> Safeguards:
    guards: Safeguards = state["safeguards"]
    return guards
