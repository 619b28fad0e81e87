"""Over random fleets, what the page shows is what the API says: numbers read from the page against the JSON of the same moment."""

from __future__ import annotations

import random
import re
from typing import Any

import httpx
import pytest
from fleet_double import FleetDouble
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Locator, Page, expect

from shared.model import Mode

pytestmark = pytest.mark.browser

SCALES = {"cpu_millicores": 1e-3, "memory_bytes": 2**-30, "disk_bytes_per_s": 1e-6, "net_rx_bits_per_s": 1e-6, "net_tx_bits_per_s": 1e-6}
BANDS = (("full", 0.95), ("high", 0.8), ("busy", 0.5), ("easy", 0.0))


def random_fleet(seed: int) -> FleetDouble:
    """1 to 12 hosts of 1 to 8 VMs in random modes, some silent, pinned or paused."""
    rng = random.Random(seed)
    fleet = FleetDouble(hosts=rng.randint(1, 12), vms_per_host=rng.randint(1, 8))
    fleet.cycle = rng.randint(1, 5000)
    fleet.modes = {host: rng.choice(list(Mode)) for host in fleet.modes}
    fleet.silent = {host for host in fleet.modes if rng.random() < 0.2}
    fleet.pinned = {host for host in fleet.modes if rng.random() < 0.3}
    fleet.paused = {host for host in fleet.modes if rng.random() < 0.2}
    return fleet


def numbers(text: str) -> list[float]:
    """All numbers of a text."""
    return [float(found.replace(",", "")) for found in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def same(shown: float, value: float) -> bool:
    """Whether `shown` is `value` rounded as the page rounds: 2 places below 10, 1 below 100, none above."""
    size = abs(value)
    places = 0 if size >= 99.5 else 1 if size >= 9.5 else 2
    return abs(shown - value) <= 0.5 * 10**-places + 1e-9


def shows(where: Locator, *values: float | None) -> None:
    """The place shows these numbers, in this order, and no others."""
    text = where.inner_text()
    wanted = [value for value in values if value is not None]
    found = numbers(text)
    assert len(found) == len(wanted), (text, wanted)
    assert all(map(same, found, wanted)), (text, wanted)


def word_of(host: dict[str, Any]) -> str:
    if not host["alive"]:
        return "silent"
    if host["cpu_used_millicores"] is None:
        return "unknown"
    share = host["cpu_used_millicores"] / host["capacity"]["cpu_millicores"]
    return next(name for name, least in BANDS if share >= least)


def check_fleet(page: Page, api: httpx.Client) -> None:
    fleet, hosts, scores = (api.get(path).json() for path in ("fleet", "hosts", "scores"))
    expect(page.locator("#hosts tbody tr[data-key]")).to_have_count(len(hosts))
    facts = page.locator("#facts dd").all_inner_texts()
    assert [numbers(text)[0] for text in facts[:6]] == [
        fleet[key] for key in ("hosts_alive", "hosts_silent", "vms", "agents_connected", "epoch", "cycle")
    ]
    for host in hosts:
        row = page.locator(f'#hosts tbody tr[data-key="{host["id"]}"]')
        cells = row.locator("td")
        expect(cells.nth(1)).to_contain_text(host["mode"])
        assert ("pinned" in cells.nth(1).inner_text()) is host["mode_pinned"]
        assert ("paused" in cells.nth(1).inner_text()) is (host["paused"] or bool(host["paused_by"]))
        expect(cells.nth(2)).to_contain_text("alive" if host["alive"] else "counts as full")
        shows(cells.nth(3), host["committed"]["cpu_millicores"] / 1000, host["capacity"]["cpu_commit_millicores"] / 1000)
        shows(cells.nth(4), host["committed"]["memory_bytes"] / 2**30, host["capacity"]["memory_commit_bytes"] / 2**30)
        shows(cells.nth(5), len(host["vm_ids"]))
    words = [word_of(host) for host in hosts]
    legend = re.findall(r"(\d+) (silent|full|high|busy|easy|unknown)\b", page.locator("#heat-now-legend").inner_text())
    told = {word: int(count) for count, word in legend}
    assert told == {word: words.count(word) for word in set(words)}
    silent = [host["id"] for host in hosts if not host["alive"]]
    assert (f"{len(silent)} of {len(hosts)} hosts silent" in page.locator("#wrong").inner_text()) is bool(silent)
    for card, score in zip(page.locator("#scores .card").all(), scores["modes"], strict=True):
        shows(card.locator("h4"), score["hosts"], score["vms"])
        assert abs(numbers(card.locator(".big").inner_text())[0] - score["violation_minutes"]) <= 0.5


def check_vm(page: Page, api: httpx.Client, vm_id: str) -> None:
    vm, forecast = api.get(f"vms/{vm_id}").json(), api.get(f"vms/{vm_id}/forecast").json()
    expect(page.locator("h2")).to_have_text(f"VM {vm['name']}")
    for state in vm["resources"]:
        row = page.locator(f'#resources tbody tr[data-key="{state["resource"]}"] td')
        scale = SCALES[state["resource"]]
        for at, key in ((1, "demand"), (2, "peak"), (3, "allocation")):
            value = state[key]
            if value == -1:
                expect(row.nth(at)).to_have_text("unlimited")
            elif value is None:
                expect(row.nth(at)).to_contain_text("?")  # never 0
            else:
                shows(row.nth(at), value * scale)
        expect(row.nth(5)).to_have_text(state["control"])
    page.locator("#chart svg").focus()
    page.keyboard.press("End")  # the last step of the forecast
    rows = next(each["rows"] for each in forecast["resources"] if each["resource"] == "cpu_millicores")
    text = page.locator(".readout").inner_text()
    said = re.search(
        r"forecast (\S+), 95 % band (\S+) to (\S+), 80 % band (\S+) to (\S+), 50 % band (\S+) to (\S+), peak below (\S+)", text
    )
    assert said, text
    level = dict(zip(forecast["levels"], rows[-1]["quantiles"], strict=True))
    peak = dict(zip(forecast["levels"], rows[-1]["peak_quantiles"], strict=True))
    wanted = [rows[-1]["mean"], *(level[q] for q in (0.025, 0.975, 0.1, 0.9, 0.25, 0.75)), peak[0.95]]
    for shown, value in zip(said.groups(), wanted, strict=True):
        assert float(shown) == pytest.approx(value / 1000, rel=5.1e-3), (text, wanted)  # three digits


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_the_page_shows_what_the_api_says(watch: Any, serve: Any, seed: int) -> None:
    running = serve(random_fleet(seed))
    try:
        watched = watch(running.url)
        with httpx.Client(base_url=f"{running.url}api/v1/") as api:
            expect(watched.page.locator("#scores .card").first).to_be_visible()
            check_fleet(watched.page, api)
            vm_id = random.Random(seed).choice(sorted(running.fleet.home))
            watched.see(f"vm/{vm_id}")
            expect(watched.page.locator("#chart svg")).to_be_visible()
            check_vm(watched.page, api, vm_id)
        assert watched.complaints == []
        watched.context.close()
    finally:
        running.stop()
