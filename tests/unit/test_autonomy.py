"""What the agent may do on its own: the whole table."""

from __future__ import annotations

import pytest

from agent.acting.autonomy import allowance
from shared.model import Mode


@pytest.mark.parametrize("link_up", [True, False])
@pytest.mark.parametrize("plan_live", [True, False])
def test_table(link_up: bool, plan_live: bool) -> None:
    table = {mode: allowance(mode, link_up=link_up, plan_live=plan_live) for mode in Mode}
    off, observe, reactive, predictive = (table[mode] for mode in Mode)
    assert not any((off.plan_growth, off.plan_shrink, off.local_growth, off.local_shrink, off.shadow))
    assert all((observe.plan_growth, observe.plan_shrink, observe.local_growth, observe.local_shrink, observe.shadow))
    assert (reactive.plan_growth, reactive.plan_shrink, reactive.local_growth, reactive.local_shrink) == (False, False, True, link_up)
    assert (predictive.plan_growth, predictive.plan_shrink) == (True, link_up)
    assert (predictive.local_growth, predictive.local_shrink) == (True, False)
    assert not any((off.order_growth, off.order_shrink, observe.order_growth, observe.order_shrink))
    assert (reactive.order_growth, reactive.order_shrink) == (predictive.order_growth, predictive.order_shrink) == (True, link_up)
    assert not reactive.shadow and not predictive.shadow
    assert reactive.origin == ("reactive" if link_up else "autonomy")
    assert predictive.origin == ("reactive" if link_up and plan_live else "autonomy")
