"""What the agent may do on its own: a pure table of mode, link, plan, and whether there is a coordinator at all.

Invariant (fail static): with a coordinator configured and not connected nothing shrinks, whatever the mode, until the lease is over; then
limits go back to what the owner had, and nowhere else. Growth under measured pressure stays allowed in every acting mode. Mode reactive
shrinks by its own rule while the link is up, and always where no coordinator is configured; in mode predictive shrinks come from plans
alone, so without a coordinator ever it is mode reactive.

| mode       | coordinator  | plan steps       | operator's orders | local growth    | local shrink | decay       |
| off        | any          | refused          | refused           | no              | no           | no          |
| observe    | any          | shadowed         | refused           | shadowed        | shadowed     | no          |
| reactive   | link up      | refused          | yes               | yes             | yes          | no          |
| reactive   | link down    | refused          | growth till stale | sustained       | no           | after lease |
| predictive | link up      | yes              | yes               | yes             | no           | no          |
| predictive | link down    | growth till stale| growth till stale | sustained       | no           | after lease |
| reactive   | none at all  | refused          | yes               | yes             | yes          | no          |
| predictive | none at all  | refused          | yes               | yes             | yes          | no          |
| any        | host paused  | refused          | refused           | no              | no           | no          |

Sustained: two samples in a row must want the growth; a VM that stalls on memory, swaps or killed for want of it gets memory on the first.
An order is a person's, so it counts wherever the host acts at all; in mode observe it is refused rather than shadowed, so that nobody
takes a shadow for the deed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
    sustained: bool = False  # local growth needs two samples in a row, but for a VM short of memory
    decay: bool = False  # limits go back to the owner's defaults


NOTHING = Allowance(
    plan_growth=False,
    plan_shrink=False,
    order_growth=False,
    order_shrink=False,
    local_growth=False,
    local_shrink=False,
    shadow=False,
    origin="reactive",
    planned=False,
)


@lru_cache(maxsize=256)  # the whole table has 128 rows, and each event of the core asks for one
def allowance(
    mode: Mode, *, link_up: bool, plan_live: bool, standalone: bool = False, lease_over: bool = False, paused: bool = False
) -> Allowance:
    """The row of the table.

    `plan_live`: a plan was accepted and its deadline has not passed. `standalone`: no coordinator is configured. `lease_over`: the link has
    been down for longer than guard.lease_s. `paused`: the host's kill switch.
    """
    if paused:
        return NOTHING
    observe, acts = mode is Mode.OBSERVE, mode.acts
    predictive = mode is Mode.PREDICTIVE and not standalone
    asked = link_up or standalone  # somebody answers for what is taken away
    alone = not asked or (predictive and not plan_live)
    return Allowance(
        plan_growth=observe or predictive,
        plan_shrink=observe or (predictive and link_up),
        order_growth=acts,
        order_shrink=acts and asked,
        local_growth=mode is not Mode.OFF,
        local_shrink=observe or (acts and not predictive and asked),
        shadow=observe,
        origin="autonomy" if alone else "reactive",
        planned=predictive and not alone,
        sustained=acts and not asked,
        decay=acts and not asked and lease_over,
    )
