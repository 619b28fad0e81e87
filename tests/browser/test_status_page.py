"""The status page in a real browser: every view renders, follows live data, changes things only when asked twice, and logs no error."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_the_fleet_at_a_glance(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    expect(page.locator("#wrong li")).to_have_count(3)
    expect(page.locator("#wrong li").first).to_contain_text("1 of 4 hosts silent and counted as full: kvm-03")
    expect(page.locator("#wrong li").nth(1)).to_contain_text("AgentStale of kvm-03")
    expect(page.locator("#wrong li").nth(2)).to_contain_text("kvm-01 lacks 3.00 GiB")
    expect(page.locator("#heat-now-legend")).to_contain_text("1 silent")
    expect(page.locator("#heat-now")).to_have_attribute("aria-label", "Now: 1 silent, 3 easy")
    expect(page.locator("#hosts tbody tr")).to_have_count(4)
    expect(page.locator("#hosts tr.silent")).to_contain_text("counts as full")
    expect(page.locator("#scores .card")).to_have_count(2)
    expect(page.locator("#scores-count")).to_have_text("2 reactive, 2 predictive")
    expect(page.locator("#steps tbody .code").first).to_be_visible()
    expect(page.locator("#cycle-panel .stage-list li")).to_have_count(7)
    expect(page.locator("#link-text")).to_contain_text("live")
    assert watched.complaints == []


def test_the_heat_map_changes_its_resource_and_leads_to_the_host(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    expect(page.locator("#heat-now-legend")).to_contain_text("3 easy")
    page.locator("#heat-resource").select_option("memory_bytes")
    expect(page.locator("#heat-now-legend")).to_contain_text("3 busy")  # 43 of 64 GiB in use
    page.locator("#heat-ahead").select_option("highest")
    expect(page.locator(".heat h4").nth(1)).to_have_text("Highest within the hour, with its margin")
    page.locator("#heat-now").hover(position={"x": 20, "y": 10})
    expect(page.locator("#heat-now-told")).to_have_text("kvm-03: silent, counts as full")
    page.locator("#heat-now").click(position={"x": 20, "y": 10})
    expect(page.locator("h2")).to_have_text("Host kvm-03")
    assert watched.complaints == []


def test_the_coming_hour_of_hosts_and_clients_is_shown(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page, rows = watched.page, watched.page.locator("#groups tbody tr")
    expect(rows).to_have_count(8)  # the fleet, four hosts, three clients
    expect(rows.first).to_contain_text("whole fleet")
    expect(rows.nth(1).locator(".fill")).to_have_count(2)  # against the host's capacity
    expect(rows.nth(5).locator(".fill")).to_have_count(0)  # a client has none
    page.locator("#kind").select_option("client")
    expect(rows).to_have_count(3)
    page.locator("#kind").select_option("app")
    expect(rows).to_contain_text(["No sums yet"])
    page.locator("#steps-filter").select_option("refused")
    expect(page.locator("#steps tbody .badge.verified")).to_have_count(0)
    assert watched.complaints == []


def test_the_vm_table_sorts_filters_and_leads_to_the_vm(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("vms")
    first = page.locator("#vms tbody tr").first
    expect(page.locator("#vms tbody tr")).to_have_count(24)
    expect(first).to_contain_text("32.5")  # most violation minutes first
    page.get_by_role("button", name="VM", exact=True).click()
    expect(page.locator("#vms th[aria-sort=ascending]")).to_have_text("VM")
    expect(first).to_contain_text("batch-01-02")
    page.locator("#host-filter").select_option("kvm-02")
    expect(page.locator("#vms tbody tr")).to_have_count(6)
    page.get_by_role("link", name="db-02-01").click()
    expect(page.locator("h2")).to_have_text("VM db-02-01")
    assert watched.complaints == []


def test_a_vm_with_its_chart_steps_outlook_and_accuracy(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("vm/vm-02-01")
    for kind in ("demand", "peak", "allocation", "before", "mean", "highest"):
        expect(page.locator(f"#chart svg .line.{kind}")).to_have_count(1)
    expect(page.locator("#chart svg .fan")).to_have_count(3)
    expect(page.locator("#chart svg .step").first).to_be_visible()
    expect(page.locator("#resources tbody tr")).to_have_count(5)
    expect(page.locator("#steps tbody tr").first).to_contain_text("db-02-01")
    expect(page.locator("#outlook tbody tr").nth(10)).to_be_visible()
    expect(page.locator("#vm-accuracy tbody tr")).to_have_count(3)
    expect(page.locator("#receipts .receipt li").first).to_contain_text("cpu: mean 2011")
    page.locator("#chart svg").focus()
    page.keyboard.press("End")
    expect(page.locator(".readout")).to_contain_text("95 % band")
    page.locator("#resource").select_option("memory_bytes")
    expect(page.locator("#outlook tbody tr").first).to_contain_text("GiB")
    page.reload()
    expect(page.locator("#resource")).to_have_value("memory_bytes")  # the address remembers the choice
    assert watched.complaints == []


def test_what_ran_into_its_limit_is_marked_on_the_time_line(watch: Any, served: Any) -> None:
    real = served.fleet.history

    async def censored(vm_id: str, hours: int) -> Any:
        found = await real(vm_id, hours)
        cut = type(found.resources[0])(
            **{name: getattr(found.resources[0], name) for name in found.resources[0].__struct_fields__}
            | {"censored": (0.5, 1.0, None, *found.resources[0].censored[3:])}
        )
        return type(found)(vm_id=vm_id, lead_minutes=found.lead_minutes, resources=(cut, *found.resources[1:]))

    served.fleet.history = censored
    page = watch(served.url).see("vm/vm-02-01")
    marks = page.locator("#chart .censored-mark")
    expect(marks).to_have_count(2)
    expect(marks.nth(1).locator("title")).to_contain_text("100 % of samples ran into the limit")


def test_the_page_follows_the_fleet(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("vm/vm-02-01")
    expect(page.locator("#facts")).to_contain_text("412")
    expect(page.locator("#chart svg .line.demand")).to_have_count(1)
    before = page.locator("#chart svg .line.demand").get_attribute("d")
    served.fleet.tick()
    served.tell("fleet", {"cycle": 413})
    expect(page.locator("#facts")).to_contain_text("413", timeout=2_500)  # polling beside the stream takes five seconds
    page.wait_for_function("(before) => document.querySelector('#chart .line.demand').getAttribute('d') !== before", arg=before)
    assert watched.complaints == []


def test_why_this_forecast_is_told_for_the_vm_and_resource(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("vm/vm-02-01?resource=memory_bytes")
    rows = page.locator("#members tbody tr")
    expect(page.locator("#told-count")).to_have_text("Memory")
    expect(page.locator("#told li")).to_contain_text(["median_hour counts most"])
    expect(rows).to_have_count(12)  # three parts of the hour: the network and three members each
    expect(rows.first).to_contain_text("network")
    expect(rows.filter(has_text="boosting")).to_have_count(3)  # in the pool and by its own quantiles: one row
    expect(rows.filter(has_text="boosting").first).to_contain_text("10 % by its own quantiles")
    expect(rows.filter(has_text="left out: errs too much")).to_have_count(3)
    page.locator("#told-target").select_option("peak")
    expect(rows).to_have_count(12)
    page = watched.see("vm/vm-04-00")
    expect(page.locator("#told li").last).to_contain_text("No details now: the worker of 'vm-04-00' is busy")
    expect(page.locator("#members tbody tr")).to_contain_text(["No details now."])
    assert watched.complaints == []


def test_accuracy_by_resource_horizon_model_and_vm(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("quality")
    rows = page.locator("#accuracy tbody tr")
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("80 %")
    expect(page.locator("#winners tbody tr")).to_have_count(5)
    expect(page.locator("#drift tbody tr").first).to_contain_text("steady")
    for by, count in (("horizons", 12), ("models", 5), ("clients", 3), ("applications", 1), ("worst", 24)):
        page.locator("#accuracy-by").select_option(by)
        expect(rows).to_have_count(count)
    rows.nth(7).locator("a").click()  # a VM that is forecast badly
    expect(page.locator("h2")).to_have_text("VM db-02-01")
    assert watched.complaints == []


def test_the_plan_with_money_energy_prices_and_why_not(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("plan")
    expect(page.locator("#moves li").first).to_contain_text(
        "kvm-01 → kvm-04, worth 0.41 for a cost of 0.13: kvm-01 would run short of CPU at 14:10 UTC"
    )
    for text in ("20 → 17.2", "0.41 → 0.36 kWh", "3 → 3", "1.7 %"):
        expect(page.locator("#plan-facts")).to_contain_text(text)
    expect(page.locator("#migration-count")).to_have_text("plan proposed: 0 of 1 moved")
    expect(page.locator("#hosts-ahead tbody tr").first).to_contain_text("6 → 5")
    expect(page.locator("#scarce tbody tr").first).to_contain_text("5.1 per 1.00 GiB")
    page.locator("#why-not-vm").fill("vm-01-01")
    page.locator("#why-not-host").fill("kvm-02")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#why-not-answer")).to_contain_text("kvm-02 would lack 2.10 GiB of memory")
    expect(page.locator("#why-not-answer")).to_contain_text("would be lifted by 2.10 GiB more of memory on kvm-02")
    assert watched.complaints == []


@pytest.mark.parametrize(
    ("view", "panel"),
    [("alerts", "#alerts-panel"), ("audit", "#audit-panel"), ("shadow", "#shadow-panel"), ("clients", "#compliance-panel")],
)
def test_a_view_that_this_coordinator_has_nothing_for_says_so(watch: Any, served: Any, view: str, panel: str) -> None:
    watched = watch(served.url)
    page = watched.page
    page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": {"/api/v1/fleet": {}}}))  # an older coordinator's
    watched.see(view)
    page.reload()
    expect(page.locator(panel)).to_contain_text("Not available on this coordinator")
    assert watched.complaints == []


def test_an_empty_fleet_is_no_error(watch: Any, served_empty: Any) -> None:
    watched = watch(served_empty.url)
    expect(watched.page.locator("#hosts .empty")).to_have_text("No host has registered yet.")
    expect(watched.page.locator("#link-text")).to_contain_text("live")
    expect(watched.see("vms").locator("#vms .empty")).to_be_visible()
    expect(watched.see("plan").locator("#placement-note")).to_have_text("No placement was made yet.")
    assert watched.complaints == []


def test_a_vm_or_host_that_is_not_there_is_said_to_be_unknown(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    expect(watched.see("vm/nobody").locator("#chart-note")).to_contain_text("Not shown: ")
    expect(watched.see("host/nowhere").locator("#host-panel")).to_contain_text("Not shown: ")
