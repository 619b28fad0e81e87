"""The status page in a real browser: it renders, follows live data, draws its chart, and never logs an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser

WIDE = {"width": 1500, "height": 1150}
DRAWN = "() => document.querySelectorAll('#chart .scatterlayer .trace').length >= 6"


class Watched:
    """A page and what it complained about, requests to anywhere else included."""

    def __init__(self, browser: Browser, home: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on(
            "request", lambda request: request.url.startswith((home, "data:")) or self.complaints.append(f"foreign: {request.url}")
        )

    def _note(self, kind: str, text: str, fine: bool = False) -> None:
        if kind in ("error", "warning", "foreign") and not fine:
            self.complaints.append(f"{kind}: {text}")


@pytest.fixture
def watch(browser: Browser) -> Iterator[Any]:
    opened: list[Watched] = []

    def open_page(url: str, **context: Any) -> Watched:
        opened.append(Watched(browser, url, **context))
        opened[-1].page.goto(url)
        return opened[-1]

    yield open_page
    for watched in opened:
        watched.context.close()


def test_the_page_renders_the_fleet(watch: Any, served: Any, tmp_path: Path) -> None:
    watched = watch(served.url)
    page = watched.page
    expect(page.locator("#hosts tbody tr")).to_have_count(4)
    expect(page.locator("#vms tbody tr")).to_have_count(24)
    expect(page.locator("#hosts tr.silent")).to_contain_text("counts as full")
    expect(page.locator("#scores .card")).to_have_count(2)
    expect(page.locator("#steps tbody .code").first).to_be_visible()
    expect(page.locator("#receipts .receipt li").first).to_contain_text("cpu: mean 2011")
    expect(page.locator("#link-text")).to_have_text("live")
    page.wait_for_function(DRAWN)
    page.screenshot(path=tmp_path / "light.png", full_page=True)
    assert (tmp_path / "light.png").stat().st_size > 50_000
    assert watched.complaints == []


def test_the_page_shows_the_placement(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    expect(page.locator("#moves-count")).to_have_text("1 · plan proposed: 0 of 1 moved")
    expect(page.locator("#moves li").first).to_contain_text(
        "kvm-01 → kvm-04, worth 0.41 for a cost of 0.13: kvm-01 would run short of CPU at 14:10 UTC"
    )
    expect(page.locator("#placement-note")).to_contain_text(
        "cost of the coming hour 20 → 17.2 · 0.41 → 0.36 kWh · 3 → 3 hosts in use · at most 1.7 %"
    )
    expect(page.locator("#hosts-ahead tbody tr")).to_have_count(4)
    expect(page.locator("#hosts-ahead tbody tr").first).to_contain_text("6 → 5")
    assert watched.complaints == []


def test_the_page_follows_the_fleet(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    expect(page.locator("#facts")).to_contain_text("412")
    page.wait_for_function(DRAWN)
    newest = "() => { const t = document.getElementById('chart').data.find((d) => d.name === 'demand'); return t.x[t.x.length - 1]; }"
    before = page.evaluate(newest)
    served.fleet.tick()
    expect(page.locator("#facts")).to_contain_text("413", timeout=10_000)
    page.wait_for_function(f"(before) => ({newest})() === before + 300000", arg=before)
    assert watched.complaints == []


def test_choosing_a_vm_and_a_resource_changes_the_chart(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    page.locator("#vms .name", has_text="db-02-01").click()
    expect(page.locator("#chart-vm")).to_have_text("db-02-01")
    expect(page.locator("tr.chosen")).to_contain_text("db-02-01")
    page.locator("#resource").select_option("memory_bytes")
    page.wait_for_function("() => document.querySelector('#chart .ytitle')?.textContent === 'GiB'")
    assert "vm=vm-02-01&resource=memory_bytes" in page.url
    page.reload()
    expect(page.locator("#chart-vm")).to_have_text("db-02-01")  # the address remembers the choice
    assert watched.complaints == []


def test_the_outlook_of_the_chosen_vm_is_shown(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    page.locator("#vms .name", has_text="db-02-01").click()
    rows = page.locator("#outlook tbody tr")
    expect(rows.nth(10)).to_be_visible()
    expect(rows.first).to_contain_text("cores")
    page.locator("#resource").select_option("memory_bytes")
    expect(rows.first).to_contain_text("GiB")
    assert watched.complaints == []


def test_the_coming_hour_of_hosts_and_clients_is_shown(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page, rows = watched.page, watched.page.locator("#groups tbody tr")
    expect(rows).to_have_count(8)  # the fleet, four hosts, three clients
    expect(rows.first).to_contain_text("whole fleet")
    expect(rows.nth(1)).to_contain_text("kvm-01")
    expect(rows.nth(1).locator(".fill")).to_have_count(2)  # against the host's capacity
    expect(rows.nth(5).locator(".fill")).to_have_count(0)  # a client has none
    page.locator("#kind").select_option("client")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("aurora")
    page.locator("#kind").select_option("app")
    expect(rows).to_contain_text(["No sums yet"])
    assert watched.complaints == []


def test_accuracy_by_resource_horizon_model_and_vm(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page, rows = watched.page, watched.page.locator("#accuracy tbody tr")
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("CPU")
    expect(rows.first).to_contain_text("80 %")
    for by, count in (("horizons", 12), ("models", 5), ("clients", 3), ("applications", 1), ("worst", 24)):
        page.locator("#accuracy-by").select_option(by)
        expect(rows).to_have_count(count)
    rows.nth(7).locator("button").click()  # a VM that is forecast badly
    expect(page.locator("#chart-vm")).to_have_text("db-02-01")
    expect(page.locator("#vm-accuracy tbody tr")).to_have_count(3)
    expect(page.locator("#vm-accuracy tbody tr").first).to_contain_text("5-10")
    assert watched.complaints == []


def test_why_this_forecast_is_told_for_the_chosen_vm_and_resource(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page, rows = watched.page, watched.page.locator("#members tbody tr")
    page.locator("#vms .name", has_text="db-02-01").click()
    page.locator("#resource").select_option("memory_bytes")
    expect(page.locator("#told-of")).to_have_text("Memory")
    expect(page.locator("#told li")).to_contain_text(["median_hour counts most"])
    expect(rows).to_have_count(12)  # three parts of the hour: the network and three members each
    expect(rows.first).to_contain_text("network")
    expect(rows.filter(has_text="boosting")).to_have_count(3)  # in the pool and by its own quantiles: one row
    expect(rows.filter(has_text="boosting").first).to_contain_text("10 % by its own quantiles")
    expect(rows.filter(has_text="left out: errs too much")).to_have_count(3)
    page.locator("#told-target").select_option("peak")
    expect(rows).to_have_count(12)
    page.locator("#vms .name", has_text="web-04-00").click()
    expect(page.locator("#told li").last).to_contain_text("No details now: the worker of 'vm-04-00' is busy")
    expect(rows).to_contain_text(["No details now."])
    assert watched.complaints == []


def test_the_vm_table_sorts_and_filters(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    first = page.locator("#vms tbody tr").first
    expect(first).to_contain_text("32.5")  # most violation minutes first
    page.get_by_role("button", name="VM", exact=True).click()
    expect(page.locator("#vms th[aria-sort=ascending]")).to_have_text("VM")
    expect(first).to_contain_text("batch-01-02")
    page.locator("#host-filter").select_option("kvm-02")
    expect(page.locator("#vms tbody tr")).to_have_count(6)
    page.locator("#steps-filter").select_option("refused")
    expect(page.locator("#steps tbody .badge.verified")).to_have_count(0)
    assert watched.complaints == []


def test_an_empty_fleet_is_no_error(watch: Any, served_empty: Any) -> None:
    watched = watch(served_empty.url)
    expect(watched.page.locator("#hosts .empty")).to_have_text("No host has registered yet.")
    expect(watched.page.locator("#vms .empty")).to_be_visible()
    expect(watched.page.locator("#link-text")).to_have_text("live")
    assert watched.complaints == []


def test_a_lost_coordinator_is_shown(watch: Any, served: Any) -> None:
    page = watch(served.url).page
    expect(page.locator("#link-text")).to_have_text("live")
    served.stop()
    expect(page.locator("#link.lost")).to_contain_text("no answer since", timeout=10_000)
    expect(page.locator("#hosts tbody tr")).to_have_count(4)  # what was last known stays readable


def test_the_page_asks_for_a_token_where_reads_are_not_open(watch: Any, served_widely: Any) -> None:
    page = watch(served_widely.url).page
    expect(page.locator("#token-form")).to_be_visible()
    expect(page.locator("#hosts tbody tr")).to_have_count(0)
    page.get_by_label("This address asks for a token").fill(served_widely.token)
    page.get_by_role("button", name="Use it in this tab").click()
    expect(page.locator("#hosts tbody tr")).to_have_count(4)
    expect(page.locator("#token-form")).to_be_hidden()


@pytest.mark.parametrize(("name", "context"), [("dark", {"color_scheme": "dark"}), ("narrow", {"viewport": {"width": 400, "height": 900}})])
def test_dark_and_narrow(watch: Any, served: Any, tmp_path: Path, name: str, context: dict[str, Any]) -> None:
    watched = watch(served.url, **context)
    watched.page.wait_for_function(DRAWN)
    width = watched.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width == 0  # tables scroll inside their panels, the page does not
    watched.page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
    assert watched.complaints == []
