"""The page for everyone: axe-core finds nothing, on a phone nothing is wider than it, dark and light, and the keyboard alone is enough."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

VIEWS = ("fleet", "vms", "plan", "clients", "quality", "alerts", "audit", "shadow", "host/kvm-02", "vm/vm-02-01")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def settled(page: Page) -> None:
    """Wait until the view in sight has had its whole first turn."""
    page.wait_for_function("() => document.querySelector('#link.live') && document.body.dataset.turned")


@pytest.mark.parametrize(("scheme", "logged_in"), [("light", True), ("dark", False), ("dark", True)])
def test_axe_finds_nothing_in_any_view(watch: Any, served: Any, scheme: str, logged_in: bool) -> None:
    watched = watch(served.url, color_scheme=scheme)
    if logged_in:
        watched.log_in(served.token)
        expect(watched.page.locator("#logout")).to_be_visible()
    for view in VIEWS:
        page = watched.see(view)
        settled(page)
        found = Axe().run(page)
        told = [(each["id"], [node["target"] for node in each["nodes"][:4]]) for each in found.response["violations"]]
        assert told == [], view
    assert watched.complaints == []


def test_axe_finds_nothing_in_the_question_before_an_order(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("host/kvm-01")
    watched.log_in(served.token)
    page.get_by_role("button", name="Throw the kill switch…").click()
    expect(page.locator("#confirm")).to_be_visible()
    assert Axe().run(page).response["violations"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_page(watch: Any, served: Any, scheme: str) -> None:
    watched = watch(served.url, color_scheme=scheme, **PHONE)
    for view in VIEWS:
        page = watched.see(view)
        settled(page)
        over = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over == 0, (view, over)  # tables scroll inside their panels, the page does not
    assert watched.complaints == []


def test_the_keyboard_alone_is_enough(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    expect(page.locator("#hosts tbody tr")).to_have_count(4)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("\n")  # log in
    expect(page.locator("#token")).to_be_focused()
    page.keyboard.type(served.token + "\n")
    expect(page.locator("#logout")).to_be_visible()
    tab_to(page, "nav a[href='#/vms']")
    page.keyboard.press("Enter")
    expect(page.locator("h2")).to_have_text("VMs")
    tab_to(page, "#vms tbody a[href='#/vm/vm-01-05']")
    page.keyboard.press("Enter")
    expect(page.locator("h2")).to_have_text("VM build-01-05")
    expect(page.locator("h2")).to_be_focused()
    tab_to(page, "#chart svg")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("forecast")
    tab_to(page, "#now-panel a[href='#/host/kvm-01']")
    page.keyboard.press("Enter")
    tab_to(page, "#mode")
    page.keyboard.type("off")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm button").first).to_be_focused()  # the harmless choice
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_hidden()
    assert [host for host, _, _ in served.fleet.sent] == ["kvm-01"]
    assert watched.complaints == []


def tab_to(page: Page, selector: str, most: int = 120) -> None:
    """Press Tab until it has the focus."""
    page.locator(selector).first.wait_for()
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached within {most} steps")
