"""Orders from the page: who may not is offered none, nothing is sent before it was confirmed, and a refusal is shown with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from shared.model import Mode

pytestmark = pytest.mark.browser


def test_who_is_not_logged_in_is_offered_no_order(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("host/kvm-01")
    expect(page.locator("#pin")).to_contain_text("Not pinned on the host")
    expect(page.get_by_role("button", name="Order this mode…")).to_have_count(0)
    page.get_by_role("button", name="Log in to change the mode").click()
    expect(page.locator("#token")).to_be_focused()
    assert served.fleet.sent == []


def test_a_mode_is_ordered_only_when_confirmed(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("host/kvm-01")
    watched.log_in(served.token)
    page.locator("#mode").select_option("observe")
    page.get_by_role("button", name="Order this mode…").click()
    expect(page.locator("#confirm")).to_contain_text("Now: reactive. observe: everything is measured and planned, nothing is changed.")
    page.get_by_role("button", name="Leave as it is").click()
    expect(page.locator("#confirm")).to_be_hidden()
    assert served.fleet.sent == []
    page.get_by_role("button", name="Order this mode…").click()
    page.get_by_role("button", name="Order observe").click()
    expect(page.locator("#host-panel .badge.observe")).to_be_visible()
    assert [(host, mode) for host, mode, _ in served.fleet.sent] == [("kvm-01", Mode.OBSERVE)]
    assert watched.complaints == []


def test_the_agents_own_pin_wins_and_is_shown(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("host/kvm-02")
    expect(page.locator("#pin")).to_contain_text("Pinned to predictive on the host itself. The pin wins")
    watched.log_in(served.token)
    page.locator("#mode").select_option("off")
    page.get_by_role("button", name="Order this mode…").click()
    expect(page.locator("#confirm")).to_contain_text("The pin wins")
    page.get_by_role("button", name="Order off").click()
    expect(page.locator("#confirm .wrong")).to_contain_text("Not done. locally_pinned")
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()


def test_the_kill_switch(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("host/kvm-01")
    watched.log_in(served.token)
    page.get_by_role("button", name="Throw the kill switch…").click()
    page.get_by_role("button", name="Throw it").click()
    expect(page.get_by_role("button", name="Release the kill switch…")).to_be_visible()
    assert served.fleet.paused == {"kvm-01"}
    expect(watched.see("fleet").locator("#wrong")).to_contain_text("kill switch on kvm-01")
    page = watched.see("host/kvm-01")
    page.get_by_role("button", name="Release the kill switch…").click()
    page.get_by_role("button", name="Release it").click()
    expect(page.get_by_role("button", name="Throw the kill switch…")).to_be_visible()
    assert served.fleet.paused == set()


def test_a_vm_is_adjusted_after_a_dry_run(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("vm/vm-02-01")
    watched.log_in(served.token)
    page.locator("#adjust-vcpus").fill("9")
    page.get_by_role("button", name="Try (dry run)").click()
    expect(page.locator("#adjust-result")).to_contain_text("above_domain_maximum")
    expect(page.get_by_role("button", name="Send it…")).to_be_hidden()
    page.locator("#adjust-vcpus").fill("")
    page.locator("#adjust-memory_bytes").fill("6")
    page.get_by_role("button", name="Try (dry run)").click()
    expect(page.locator("#adjust-result")).to_contain_text("Would be sent to kvm-02: memory ? → 6.00 GiB")
    assert served.fleet.sent == []
    page.get_by_role("button", name="Send it…").click()
    page.get_by_role("button", name="Send it", exact=True).click()
    expect(page.locator("#adjust-result")).to_contain_text("Sent.")
    ((vm_id, request, _),) = served.fleet.sent
    assert (vm_id, request.memory_bytes, request.vcpus, request.dry_run) == ("vm-02-01", 6 * 2**30, None, False)


def test_an_alert_is_taken_and_silenced_and_the_silence_ended(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("alerts")
    row = page.locator("#alerts tbody tr").filter(has_text="AgentStale")
    expect(row).to_be_visible()
    expect(page.get_by_role("button", name="Take…")).to_have_count(0)
    watched.log_in(served.token)
    row.get_by_role("button", name="Take…").click()
    expect(page.locator("#confirm")).to_contain_text("Receivers are told that you look after it")
    page.get_by_role("button", name="Take it").click()
    expect(row).to_contain_text("seen by a-operator")
    row.get_by_role("button", name="Silence…").click()
    expect(page.locator("#confirm")).to_contain_text("host=kvm-03, alertname=AgentStale")
    page.get_by_role("button", name="Silence it").click()
    silence = page.locator("#silences tbody tr").first
    expect(silence).to_contain_text("in force")
    expect(silence).to_contain_text("from the status page")
    silence.get_by_role("button", name="End…").click()
    page.get_by_role("button", name="End it").click()
    expect(silence).to_contain_text("not in force")
    assert watched.complaints == []


@pytest.mark.parametrize(("button", "yes", "action"), [("Approve…", "Approve", "approve"), ("Abort…", "Abort", "abort")])
def test_a_migration_plan_is_approved_or_aborted(watch: Any, served: Any, button: str, yes: str, action: str) -> None:
    watched = watch(served.url)
    page = watched.see("plan")
    watched.log_in(served.token)
    page.get_by_role("button", name=button).click()
    expect(page.locator("#confirm")).to_contain_text("1 of its 1 moves are not done.")
    assert served.fleet.sent == []
    page.get_by_role("button", name=yes, exact=True).click()
    expect(page.locator("#confirm")).to_be_hidden()
    assert [(plan, done) for plan, done, _ in served.fleet.sent] == [("m1", action)]


def test_a_token_that_is_none_is_refused_and_logging_out_takes_the_orders_away(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.see("plan")
    watched.log_in(served.token)
    expect(page.locator("#role")).not_to_have_text("not logged in")
    assert page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]  # the token is in this tab alone
    page.reload()
    expect(page.get_by_role("button", name="Approve…")).to_be_visible()  # and outlives a reload
    page.locator("#logout").click()
    expect(page.get_by_role("button", name="Approve…")).to_have_count(0)
    watched.log_in("tg_nonsense")
    expect(page.locator("#token-wrong")).to_contain_text("not valid")
    expect(page.get_by_role("button", name="Approve…")).to_have_count(0)
    assert served.fleet.sent == []


def test_the_page_asks_for_a_token_where_reads_are_not_open(watch: Any, served_widely: Any) -> None:
    page = watch(served_widely.url).page
    expect(page.locator("#token-form")).to_be_visible()
    expect(page.locator("#hosts tbody tr")).to_have_count(0)
    page.get_by_label("A token, kept in this tab alone").fill(served_widely.token)
    page.locator("#token-form button").click()
    expect(page.locator("#hosts tbody tr")).to_have_count(4)
    expect(page.locator("#token-form")).to_be_hidden()
