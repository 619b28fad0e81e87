"""Views over the API's other parts, roles and the stream, against documents of their structs (told_documents.py)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from told_documents import DOCUMENTS, offer

from coordinator.service.access_views import AuditPage, TokenList
from coordinator.service.alerts import AlertPage, AlertRules, SilenceView
from coordinator.service.compliance import CompliancePage
from coordinator.service.reports import ShadowReport
from coordinator.service.tenancy_view import ClientPage, SlaPage
from shared.roles import Role

pytestmark = pytest.mark.browser


def test_clients_slas_and_compliance(watch: Any, served: Any) -> None:
    watched = watch("about:blank")
    watched.home = served.url
    offer(watched.page)
    page = watched.see("clients")
    expect(page.locator("#budgets tbody tr").first).to_contain_text("aurora")
    expect(page.locator("#clients tbody tr")).to_contain_text(["Aurora Ltd"])
    expect(page.locator("#slas tbody tr")).to_contain_text(["ready at most 2 % for 99.5 % of minutes in 30 days"])
    row = page.locator("#compliance tbody tr").first
    expect(row).to_contain_text("99.099 %")
    expect(row).to_contain_text("-40 of 50 min")
    expect(row).to_contain_text("60 min: 15.2 ×, 5 min: ?")
    assert Axe().run(page).response["violations"] == []


def test_alerts_silences_and_receivers(watch: Any, served: Any) -> None:
    watched = watch("about:blank")
    watched.home = served.url
    offer(watched.page)
    page = watched.see("alerts")
    expect(page.locator("#alerts tbody tr").first).to_contain_text("kvm-03 has been silent for 42 s")
    expect(page.locator("#alerts-count")).to_have_text("1 firing · 1 in all")
    expect(page.locator("#silences tbody tr").first).to_contain_text("host=~kvm-0.")
    expect(page.locator("#rules-count")).to_have_text("NOT TAKEN by pager: connection refused (3 wait)")
    assert Axe().run(page).response["violations"] == []
    expect(watched.see("fleet").locator("#wrong")).to_contain_text("kvm-03 has been silent for 42 s")
    page.goto(f"{served.url}#host=kvm-03")  # as an alert links to it
    expect(page.locator("h2")).to_have_text("Host kvm-03")


def test_the_shadow_report(watch: Any, served: Any) -> None:
    watched = watch("about:blank")
    watched.home = served.url
    offer(watched.page)
    page = watched.see("shadow")
    expect(page.locator("#shadow-verdict")).to_contain_text("violation minutes 320 → 80 (−75 %)")
    expect(page.locator("#shadow-verdict")).to_contain_text("hosts needed 4 → 3 (−25 %)")
    expect(page.locator("#shadow-hosts tbody tr")).to_contain_text(["80 min · 700 steps · 4,100 GiB h"])
    assert Axe().run(page).response["violations"] == []


def test_the_audit_is_for_those_who_may(watch: Any, served: Any) -> None:
    watched = watch("about:blank")
    watched.home = served.url
    offer(watched.page)
    page = watched.see("audit")
    expect(page.locator("#audit-panel")).to_contain_text("for operators and admins")
    watched.log_in(served.tokens[Role.ADMIN])
    expect(page.locator("#role")).to_have_text("admin")
    expect(page.locator("#audit tbody tr").first).to_contain_text("PUT /api/v1/hosts/kvm-01/mode")
    assert Axe().run(page).response["violations"] == []


@pytest.mark.parametrize(("role", "orders"), [("viewer", 0), ("operator", 2), ("admin", 2)])
def test_a_role_sees_the_orders_that_it_may_give(watch: Any, served: Any, role: str, orders: int) -> None:
    watched = watch(served.url)
    page = watched.see("host/kvm-01")
    watched.log_in(served.tokens[Role(role)])
    expect(page.locator("#role")).to_have_text(role)
    expect(page.locator("#pin")).to_be_visible()
    expect(page.locator("#orders-panel button")).to_have_count(orders)


def test_a_client_sees_its_own_vms_and_no_fleet(watch: Any, served: Any) -> None:
    watched = watch(served.url)
    page = watched.page
    watched.log_in(served.tokens[Role.CLIENT])
    expect(page.locator("nav a:visible")).to_have_text(["VMs", "Clients", "Alerts"])  # and it begins at its VMs
    expect(page.locator("#vms tbody tr")).to_have_count(8)
    page.locator("#vms tbody a").first.click()
    expect(page.locator("#chart svg")).to_be_visible()
    expect(page.locator("#facts")).to_be_empty()
    expect(watched.see("alerts").locator("#alerts tbody tr")).to_contain_text(["VmAtItsLimit"])
    expect(watched.see("clients").locator("#compliance tbody tr").first).to_contain_text("aurora")
    expect(watched.see("fleet").locator("#wrong-panel")).to_contain_text("Your role sees no fleet")
    page.goto(f"{served.url}#/plan")
    expect(page.locator("#placement-note")).to_contain_text("Your role sees no plan")
    expect(page.locator("#link-text")).to_contain_text("live")


def test_news_of_the_stream_are_shown_at_once_and_without_it_the_page_polls(watch: Any, served: Any) -> None:
    page = watch(served.url).see("fleet")
    expect(page.locator("#link-text")).to_have_text("live · stream", timeout=10_000)
    page.wait_for_timeout(500)
    served.fleet.tick()
    served.tell("fleet", {"cycle": 413})
    expect(page.locator("#facts")).to_contain_text("413", timeout=2_500)  # polling beside a stream takes five seconds
    served.end_streams()
    expect(page.locator("#link-text")).to_have_text("live", timeout=4_500)  # it is opened anew after five seconds
    expect(page.locator("#link-text")).to_have_text("live · stream", timeout=10_000)


def test_the_documents_are_of_the_structs() -> None:
    kinds = {
        "clients": ClientPage,
        "slas": SlaPage,
        "compliance": CompliancePage,
        "alerts": AlertPage,
        "silences": list[SilenceView],
        "alerts/rules": AlertRules,
        "audit": AuditPage,
        "tokens": TokenList,
        "shadow": ShadowReport,
    }
    assert set(DOCUMENTS) == set(kinds)
    for path, document in DOCUMENTS.items():
        made = msgspec.convert(document, kinds[path], strict=True)
        assert msgspec.json.decode(msgspec.json.encode(made)) == document, path
