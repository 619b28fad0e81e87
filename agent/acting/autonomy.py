"""What the agent may do on its own: a pure table of mode, link and plan.

Invariant (fail static): without a connected coordinator nothing shrinks, whatever the mode; growth under measured pressure stays allowed in
every acting mode. Mode reactive shrinks by its own rule while the link is up; in mode predictive shrinks come from plans alone.

| mode       | link | plan steps       | operator's orders | local growth    | local shrink |
| off        | any  | refused          | refused           | no              | no           |
| observe    | any  | shadowed         | refused           | shadowed        | shadowed     |
| reactive   | up   | refused          | yes               | yes             | yes          |
| reactive   | down | refused          | growth till stale | yes (autonomy)  | no           |
| predictive | up   | yes              | yes               | yes             | no           |
| predictive | down | growth till stale| growth till stale | yes (autonomy)  | no           |

An order is a person's, so it counts wherever the host acts at all; in mode observe it is refused rather than shadowed, so that nobody
takes a shadow for the deed.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.model import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What may be tried now. `shadow`: tried through the guard, never submitted. `origin` names the author of local steps."""

    plan_growth: bool
    plan_shrink: bool
    order_growth: bool
    order_shrink: bool
    local_growth: bool
    local_shrink: bool
    shadow: bool
    origin: str
    planned: bool  # sizes come from a live plan


def allowance(mode: Mode, *, link_up: bool, plan_live: bool) -> Allowance:
    """The row of the table. `plan_live`: a plan was accepted and its deadline has not passed."""
    predictive, reactive, observe = mode is Mode.PREDICTIVE, mode is Mode.REACTIVE, mode is Mode.OBSERVE
    alone = not link_up or (predictive and not plan_live)
    return Allowance(
        plan_growth=observe or predictive,
        plan_shrink=observe or (predictive and link_up),
        order_growth=mode.acts,
        order_shrink=mode.acts and link_up,
        local_growth=mode is not Mode.OFF,
        local_shrink=observe or (reactive and link_up),
        shadow=observe,
        origin="autonomy" if alone else "reactive",
        planned=predictive and not alone,
    )
