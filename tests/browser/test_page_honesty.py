"""The page never makes old things look fresh: a stuck loop, a lost coordinator, a panel that is not read, a clock that stands."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

STUCK = "async (fleet) => (await import('/static/freshness.js')).stuck(fleet)"
FLEET = {"now_s": 100_000, "last_cycle_s": 99_900, "last_cycle_wall_ms": 300, "clock_speed": None, "cycle": 7}


def test_a_stuck_loop_is_said_although_answers_come(watch: Any, served: Any) -> None:
    real = served.fleet.fleet
    watched = watch(served.url)
    expect(watched.page.locator("#link-text")).to_contain_text("live")
    expect(watched.page.locator(".banner")).to_have_count(0)
    served.fleet.fleet = lambda: msgspec.structs.replace(real(), clock_speed=None, last_cycle_s=real().now_s - 1260.0)
    expect(watched.page.locator(".banner.bad")).to_contain_text(
        "The decision loop is stuck: cycle 412 ended at 08:29:00 UTC, 21 min ago", timeout=10_000
    )
    expect(watched.page.locator("#cycle-panel")).to_have_class("panel stale")
    expect(watched.page.locator("#cycle-age")).to_contain_text("OLD")
    served.fleet.fleet = real
    expect(watched.page.locator(".banner")).to_have_count(0, timeout=10_000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, False),
        ({"last_cycle_s": 99_401}, False),  # one missed is not yet stuck
        ({"last_cycle_s": 99_398}, True),
        ({"last_cycle_s": None}, False),  # has just started
        ({"last_cycle_s": 99_398, "last_cycle_wall_ms": 60_000}, False),  # long cycles have their time
        ({"last_cycle_s": 99_398, "clock_speed": 300.0}, False),  # 0.3 s are 90 s of a clock 300 times as fast
    ],
)
def test_what_is_called_stuck(watch: Any, served: Any, change: dict[str, Any], said: bool) -> None:
    found = watch(served.url).page.evaluate(STUCK, FLEET | change)
    assert (found is not None) is said, found


def test_a_lost_coordinator_is_said_and_everything_grows_old(watch: Any, served: Any) -> None:
    page = watch(served.url).page
    expect(page.locator("#link-text")).to_contain_text("live")
    expect(page.locator("#hosts tbody tr")).to_have_count(4)
    served.stop()
    expect(page.locator("#link.lost")).to_contain_text("no answer since", timeout=10_000)
    expect(page.locator(".banner.bad").first).to_contain_text("No answer from the coordinator since")
    expect(page.locator("#hosts tbody tr")).to_have_count(4)  # what was last known stays readable ...
    expect(page.locator("#hosts-panel")).to_have_class("panel stale", timeout=20_000)  # ... and does not look fresh
    expect(page.locator("#hosts-age")).to_contain_text("STALE: not read for")


def test_a_coordinator_that_comes_back_is_live_again(watch: Any, served: Any) -> None:
    page = watch(served.url).page
    expect(page.locator("#link-text")).to_contain_text("live")
    served.fleet.broken = RuntimeError("as if")
    expect(page.locator("#link.lost")).to_be_visible(timeout=10_000)
    served.fleet.broken = None
    expect(page.locator("#link-text")).to_contain_text("live", timeout=10_000)
    expect(page.locator(".banner")).to_have_count(0)


def test_a_clock_that_stands_is_said(watch: Any, served: Any) -> None:
    page = watch(served.url).page
    expect(page.locator("#link-text")).to_contain_text("live")
    told = page.evaluate("""async () => {
        const { heard } = await import(document.querySelector('link[href*="freshness.js"]').getAttribute("href"));
        const fleet = await (await fetch("/api/v1/fleet")).json();
        heard(fleet, Date.now() + 31000);
        return document.querySelector("#banners").textContent;
    }""")
    assert "The coordinator's clock has stood at 08:50:00 UTC for 3" in told


def test_every_panel_says_how_old_it_is(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    for view in ("fleet", "vms", "plan", "quality", "host/kvm-01", "vm/vm-02-01"):
        page = watched.see(view)
        panels = page.locator(".panel:not(#adjust-panel):not(#why-not-panel)")  # forms: they show nothing until they are asked
        expect(panels.first).to_be_visible()
        for i in range(panels.count()):
            expect(panels.nth(i).locator(".age")).to_contain_text("read")
