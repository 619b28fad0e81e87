"""Which role each route asks for: one table, deny by default. A route that is not in it is refused; a test walks the application's routes.

`least` is the rung of the ladder viewer < operator < admin, None = anyone. `client` says what a caller of role client gets: HIDDEN nothing,
OWN what belongs to its VMs (the handler asks own_view.seen), WHOLE all of it (it names nobody).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from coordinator.service.callers import Caller
from shared.errors import Refusal
from shared.refusal import RefusalCode
from shared.roles import Role, at_least


class Sight(StrEnum):
    """What role client gets of a route."""

    HIDDEN = "hidden"
    OWN = "own"
    WHOLE = "whole"


class Rule(NamedTuple):
    """Who may ask one route."""

    least: Role | None
    client: Sight = Sight.HIDDEN


ANYONE: Final = Rule(None, Sight.WHOLE)
READ: Final = Rule(Role.VIEWER)  # names or sums what is others'
OWN_READ: Final = Rule(Role.VIEWER, Sight.OWN)
PLAIN_READ: Final = Rule(Role.VIEWER, Sight.WHOLE)
CHANGE: Final = Rule(Role.OPERATOR)
OWN_CHANGE: Final = Rule(Role.OPERATOR, Sight.OWN)
GOVERN: Final = Rule(Role.ADMIN)

_V1: Final = "/api/v1"
RULES: Final[dict[tuple[str, str], Rule]] = {
    ("GET", "/"): ANYONE,
    ("GET", "/static/{name}"): ANYONE,
    ("GET", "/livez"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/metrics"): READ,
    ("GET", "/openapi.json"): PLAIN_READ,
    ("GET", "/openapi.json/openapi.json"): PLAIN_READ,  # the framework's own
    ("GET", "/openapi.json/{path}"): PLAIN_READ,
    ("GET", f"{_V1}/fleet"): READ,
    ("GET", f"{_V1}/hosts"): READ,
    ("GET", f"{_V1}/hosts/{{host_id}}"): READ,
    ("GET", f"{_V1}/vms"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/forecast"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/forecast/why"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/outlook"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/history"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/accuracy"): OWN_READ,
    ("GET", f"{_V1}/aggregates"): OWN_READ,
    ("GET", f"{_V1}/aggregates/forecast"): OWN_READ,
    ("GET", f"{_V1}/accuracy"): READ,
    ("GET", f"{_V1}/plans"): READ,  # a plan is a host's, and so of many clients
    ("GET", f"{_V1}/receipts"): OWN_READ,
    ("GET", f"{_V1}/receipts/{{receipt_id}}"): OWN_READ,
    ("GET", f"{_V1}/outcomes"): OWN_READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/hosts"): READ,  # names hosts, and answers for VMs that are gone and have no owner any more
    ("GET", f"{_V1}/steps"): READ,
    ("GET", f"{_V1}/compliance"): OWN_READ,
    ("GET", f"{_V1}/compliance/{{kind}}/{{name}}"): OWN_READ,
    ("GET", f"{_V1}/alerts"): OWN_READ,
    ("GET", f"{_V1}/alerts/rules"): READ,
    ("GET", f"{_V1}/alerts/{{alert_id}}"): OWN_READ,
    ("GET", f"{_V1}/silences"): READ,
    ("POST", f"{_V1}/alerts/{{alert_id}}/acknowledgement"): CHANGE,
    ("POST", f"{_V1}/silences"): CHANGE,
    ("DELETE", f"{_V1}/silences/{{silence_id}}"): CHANGE,
    ("GET", f"{_V1}/reports/{{client}}"): OWN_READ,
    ("GET", "/reports/{client}"): OWN_READ,
    ("GET", f"{_V1}/shadow"): READ,
    ("GET", f"{_V1}/clients"): READ,
    ("POST", f"{_V1}/clients"): CHANGE,
    ("GET", f"{_V1}/clients/{{id}}"): READ,
    ("PUT", f"{_V1}/clients/{{id}}"): CHANGE,
    ("PATCH", f"{_V1}/clients/{{id}}"): CHANGE,
    ("DELETE", f"{_V1}/clients/{{id}}"): CHANGE,
    ("GET", f"{_V1}/clients/{{id}}/profile"): READ,
    ("GET", f"{_V1}/applications"): READ,
    ("POST", f"{_V1}/applications"): CHANGE,
    ("GET", f"{_V1}/applications/{{id}}"): READ,
    ("PUT", f"{_V1}/applications/{{id}}"): CHANGE,
    ("PATCH", f"{_V1}/applications/{{id}}"): CHANGE,
    ("DELETE", f"{_V1}/applications/{{id}}"): CHANGE,
    ("GET", f"{_V1}/slas"): READ,
    ("POST", f"{_V1}/slas"): CHANGE,
    ("GET", f"{_V1}/slas/{{id}}"): READ,
    ("PUT", f"{_V1}/slas/{{id}}"): CHANGE,
    ("PATCH", f"{_V1}/slas/{{id}}"): CHANGE,
    ("DELETE", f"{_V1}/slas/{{id}}"): CHANGE,
    ("GET", f"{_V1}/events"): READ,
    ("POST", f"{_V1}/events"): CHANGE,
    ("POST", f"{_V1}/events/trigger"): CHANGE,
    ("GET", f"{_V1}/events/{{id}}"): READ,
    ("PUT", f"{_V1}/events/{{id}}"): CHANGE,
    ("PATCH", f"{_V1}/events/{{id}}"): CHANGE,
    ("DELETE", f"{_V1}/events/{{id}}"): CHANGE,
    ("GET", f"{_V1}/policies"): READ,
    ("GET", f"{_V1}/policies/fleet"): READ,
    ("PUT", f"{_V1}/policies/fleet"): CHANGE,
    ("PATCH", f"{_V1}/policies/fleet"): CHANGE,
    ("DELETE", f"{_V1}/policies/fleet"): CHANGE,
    ("GET", f"{_V1}/policies/client/{{id}}"): READ,
    ("PUT", f"{_V1}/policies/client/{{id}}"): CHANGE,
    ("PATCH", f"{_V1}/policies/client/{{id}}"): CHANGE,
    ("DELETE", f"{_V1}/policies/client/{{id}}"): CHANGE,
    ("GET", f"{_V1}/policies/vm/{{id}}"): READ,
    ("PUT", f"{_V1}/policies/vm/{{id}}"): CHANGE,
    ("PATCH", f"{_V1}/policies/vm/{{id}}"): CHANGE,
    ("DELETE", f"{_V1}/policies/vm/{{id}}"): CHANGE,
    ("GET", f"{_V1}/pools"): READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/policy"): READ,
    ("GET", f"{_V1}/vms/{{vm_id}}/profile"): READ,
    ("GET", f"{_V1}/scores"): READ,
    ("GET", f"{_V1}/moves"): READ,
    ("GET", f"{_V1}/migration"): READ,
    ("GET", f"{_V1}/migrations"): READ,
    ("GET", f"{_V1}/sizing"): READ,
    ("GET", f"{_V1}/placement"): READ,
    ("GET", f"{_V1}/placement/hosts"): READ,
    ("GET", f"{_V1}/placement/hosts/{{host_id}}"): READ,
    ("GET", f"{_V1}/placement/vms/{{vm_id}}"): READ,  # names the hosts of others
    ("GET", f"{_V1}/placement/why-not"): READ,
    ("GET", f"{_V1}/operations"): OWN_READ,
    ("GET", f"{_V1}/operations/{{operation_id}}"): OWN_READ,
    ("GET", f"{_V1}/stream"): OWN_READ,
    ("GET", f"{_V1}/whoami"): PLAIN_READ,
    ("GET", f"{_V1}/audit"): Rule(Role.OPERATOR),
    ("GET", f"{_V1}/tokens"): GOVERN,
    ("POST", f"{_V1}/tokens"): GOVERN,
    ("DELETE", f"{_V1}/tokens/{{token_id}}"): GOVERN,
    ("PUT", f"{_V1}/hosts/{{host_id}}/mode"): CHANGE,
    ("PUT", f"{_V1}/hosts/{{host_id}}/pause"): CHANGE,
    ("PUT", f"{_V1}/fleet/pause"): CHANGE,
    ("PUT", f"{_V1}/migrations/{{plan_id}}"): CHANGE,
    ("POST", f"{_V1}/vms/{{vm_id}}/resources"): CHANGE,
    ("POST", f"{_V1}/signals"): OWN_CHANGE,
}


def check(caller: Caller, method: str, path: str) -> None:
    """Let the caller pass or raise Refusal. `path` is the route's template; OPTIONS tells only which methods there are."""
    rule = ANYONE if method == "OPTIONS" else RULES.get((method, path))
    if rule is None:
        raise Refusal(RefusalCode.FORBIDDEN, f"{method} {path}: no rule says who may")
    if rule.least is None:
        return
    if caller.role is Role.CLIENT:
        allowed = rule.client is not Sight.HIDDEN
    else:
        allowed = caller.role is not None and at_least(caller.role, rule.least)
    if allowed:
        return
    if not caller.known:
        raise Refusal(RefusalCode.UNAUTHORIZED, "this needs the header `Authorization: Bearer TOKEN` with a valid token")
    raise Refusal(RefusalCode.FORBIDDEN, f"{method} {path} needs role {rule.least}; {caller.name!r} has {caller.role}")
