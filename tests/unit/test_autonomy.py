"""What the agent may do on its own: the whole table."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product

import pytest

from agent.acting.autonomy import NOTHING, Allowance, allowance
from shared.model import Mode

LINK = pytest.mark.parametrize("link_up", [True, False])
LIVE = pytest.mark.parametrize("plan_live", [True, False])


def acts(given: Allowance) -> set[str]:
    return {name for name, value in asdict(given).items() if value is True}


@LINK
@LIVE
def test_with_a_coordinator(link_up: bool, plan_live: bool) -> None:
    table = {mode: allowance(mode, link_up=link_up, plan_live=plan_live) for mode in Mode}
    planned = {"planned"} if link_up and plan_live else set()
    alone = set() if link_up else {"sustained"}
    shrinks = {"order_shrink"} if link_up else set()
    assert acts(table[Mode.OFF]) == set()
    assert acts(table[Mode.OBSERVE]) == {"plan_growth", "plan_shrink", "local_growth", "local_shrink", "shadow"}
    assert acts(table[Mode.REACTIVE]) == {"order_growth", "local_growth", *alone, *shrinks, *(["local_shrink"] if link_up else [])}
    assert acts(table[Mode.PREDICTIVE]) == {
        *("plan_growth", "order_growth", "local_growth"),
        *(["plan_shrink"] if link_up else []),
        *planned,
        *alone,
        *shrinks,
    }
    assert table[Mode.REACTIVE].origin == ("reactive" if link_up else "autonomy")
    assert table[Mode.PREDICTIVE].origin == ("reactive" if link_up and plan_live else "autonomy")


@LIVE
def test_after_the_lease_limits_decay_and_only_then(plan_live: bool) -> None:
    for mode, link_up, lease_over, standalone in product(Mode, (True, False), (True, False), (True, False)):
        given = allowance(mode, link_up=link_up, plan_live=plan_live, lease_over=lease_over, standalone=standalone)
        assert given.decay == (mode.acts and not link_up and not standalone and lease_over)


@LINK
@LIVE
def test_where_no_coordinator_is_configured_reactive_works_fully_and_predictive_is_the_same(link_up: bool, plan_live: bool) -> None:
    reactive = allowance(Mode.REACTIVE, link_up=link_up, plan_live=plan_live, standalone=True)
    assert acts(reactive) == {"order_growth", "order_shrink", "local_growth", "local_shrink"} and reactive.origin == "reactive"
    assert allowance(Mode.PREDICTIVE, link_up=link_up, plan_live=plan_live, standalone=True) == reactive
    observe = allowance(Mode.OBSERVE, link_up=link_up, plan_live=plan_live, standalone=True)
    assert acts(observe) == {"plan_growth", "plan_shrink", "local_growth", "local_shrink", "shadow"}
    assert acts(allowance(Mode.OFF, link_up=link_up, plan_live=plan_live, standalone=True)) == set()


def test_a_paused_host_does_nothing_whatever_else_holds() -> None:
    assert acts(NOTHING) == set() and NOTHING.origin == "reactive"
    for mode in Mode:
        for link_up, live, standalone, over in product((True, False), repeat=4):
            given = allowance(mode, link_up=link_up, plan_live=live, standalone=standalone, lease_over=over, paused=True)
            assert given == NOTHING


@pytest.mark.parametrize("mode", list(Mode))
def test_with_a_silent_coordinator_nothing_shrinks(mode: Mode) -> None:
    for plan_live, lease_over in product((True, False), (True, False)):
        given = allowance(mode, link_up=False, plan_live=plan_live, lease_over=lease_over)
        assert given.shadow or not (given.plan_shrink or given.order_shrink or given.local_shrink)
