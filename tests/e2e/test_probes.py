"""Probes and metrics of live processes."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow
PROMTOOL = shutil.which("promtool")


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value of a page that a Prometheus server can read."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_coordinators_probes_and_metrics(ring: Any) -> None:
    assert (ring.http.get("/livez").status_code, ring.http.get("/readyz").status_code) == (200, 200)
    found = samples(ring.http.get("/metrics").text)
    assert found["tidegate_hosts", (("state", "alive"),)] == 3
    assert found["tidegate_agents_connected", ()] == 3
    assert found["tidegate_vms", ()] == 9
    before = found["tidegate_frames_received_total", ()]
    ring.until(lambda: samples(ring.http.get("/metrics").text)["tidegate_frames_received_total", ()] > before, "frames go on coming in")


def test_challengers_have_had_a_turn(ring: Any) -> None:
    def answered() -> float:
        found = samples(ring.http.get("/metrics").text)
        if not found.get(("tidegate_challenge_turns_total", ()), 0.0):
            return 0.0
        return found.get(("tidegate_challenge_series_total", (("challenger", "auto_ets"), ("said", "true"))), 0.0)

    ring.until(lambda: answered() >= 8, "auto_ets has answered", 300)


def test_an_agents_metrics(ring: Any) -> None:
    def page() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return samples(httpx.get(f"http://127.0.0.1:{ring.exporter_port}/metrics", timeout=10).text)

    found = page()
    assert found["tidegate_agent_vms", ()] == 3
    ring.until(lambda: page()["tidegate_agent_link_up", ()] == 1, "the link is shown up")
    assert found["tidegate_agent_mode", (("mode", "reactive"),)] == 1 and found["tidegate_agent_mode", (("mode", "off"),)] == 0
    ring.until(lambda: page()["tidegate_agent_samples_total", ()] > found["tidegate_agent_samples_total", ()], "sampling goes on")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_has_nothing_to_say_of_live_pages(ring: Any) -> None:
    ring.until(lambda: "tidegate_forecast_pinball_ratio{" in ring.http.get("/metrics").text, "a decision was made")
    for url in (f"{ring.fleet.url}/metrics", f"http://127.0.0.1:{ring.exporter_port}/metrics"):
        page = httpx.get(url.replace("//metrics", "/metrics"), timeout=10).content
        done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=page, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr.decode(), done.stdout.decode()) == (0, "", ""), url


def test_alerts_are_judged(ring: Any) -> None:
    """With three healthy hosts nobody is silent; every rule is in force."""
    assert len(ring.get("alerts/rules")["rules"]) >= 20
    found = samples(ring.http.get("/metrics").text)
    assert found["tidegate_alerts_hidden", ()] == 0
    assert found["tidegate_alert_look_duration_seconds_count", ()] > 0


def test_the_status_page_is_served(ring: Any) -> None:
    page = ring.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
