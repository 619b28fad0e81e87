"""The status page's shell and assets: nothing from elsewhere, nothing inline, addressed by content."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from fleet_double import FleetDouble
from litestar import Litestar
from litestar.testing import TestClient

from coordinator.service.api import create_app
from coordinator.service.auth import TokenVerifier
from coordinator.service.pages import asset

NAMES = ("app.js", "chart.js", "style.css", "favicon.svg", "plotly.min.js")
Client = TestClient[Litestar]


class Elements(HTMLParser):
    """Every element of a page as (tag, attributes), and the text inside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline += data.strip()


@pytest.fixture
def client() -> Iterator[Client]:
    with TestClient(create_app(FleetDouble(), TokenVerifier({})), base_url="http://127.0.0.1:8080") as client:
        yield client


@pytest.fixture
def elements(client: Client) -> Elements:
    return Elements(client.get("/").text)


def test_the_shell_is_html_with_the_fleets_name(client: Client) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Tidegate · demo</title>" in response.text
    assert "$" not in response.text  # every placeholder is filled


def test_a_hostile_fleet_name_stays_text() -> None:
    fleet = FleetDouble()
    summary = fleet.fleet()
    fleet.fleet = lambda: type(summary)(**{f: getattr(summary, f) for f in summary.__struct_fields__} | {"name": "<script>$x</script>"})
    with TestClient(create_app(fleet, TokenVerifier({})), base_url="http://127.0.0.1") as client:
        html = client.get("/").text
    assert "<script>$x" not in html
    assert "&lt;script&gt;$x" in html


def test_nothing_is_inline_and_nothing_comes_from_elsewhere(elements: Elements) -> None:
    assert elements.inline == ""
    for tag, attributes in elements.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or re.match(r"/(?!/)", address), (tag, address)


def test_our_own_assets_name_no_other_host() -> None:
    for name in ("app.js", "chart.js", "style.css"):
        text = asset(name).plain.decode()
        assert not re.search(r"https?://|@import|url\(", text), name
        assert "innerHTML" not in text, name


def test_every_control_has_a_label_and_every_table_its_heads(elements: Elements) -> None:
    heads = [attributes for tag, attributes in elements.found if tag == "th"]
    assert heads and all(attributes.get("scope") == "col" for attributes in heads)
    labelled = [attributes["aria-labelledby"] for _, attributes in elements.found if "aria-labelledby" in attributes]
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    assert set(labelled) <= ids
    assert ("html", {"lang": "en"}) in elements.found


def test_assets_are_addressed_by_their_content(client: Client, elements: Elements) -> None:
    addresses = {attributes.get("src") or attributes.get("href") or "" for _, attributes in elements.found}
    for name in NAMES:
        address = f"/static/{name}?v={asset(name).digest}"
        assert address in addresses
        assert client.get(address).headers["cache-control"] == "public, max-age=31536000, immutable"
        assert client.get(f"/static/{name}?v=old").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", NAMES)
def test_assets_are_served_plain_and_zipped(client: Client, name: str) -> None:
    zipped = client.get(f"/static/{name}", headers={"Accept-Encoding": "gzip"})
    plain = client.get(f"/static/{name}", headers={"Accept-Encoding": "identity"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert zipped.content == plain.content == gzip.decompress(asset(name).zipped)
    assert zipped.headers["vary"] == "Accept-Encoding"


def test_plotly_comes_from_its_own_wheel_and_is_kept_from_adding_its_sheet(elements: Elements) -> None:
    script = asset("plotly.min.js").plain
    assert b"plotly.js" in script[:400]
    wanted = re.findall(rb'getElementById\("([0-9a-f]{64})"\)', script)
    unwanted = [str(attributes["id"]).encode() for _, attributes in elements.found if attributes.get("name") == "unwanted-sheet"]
    assert wanted and set(wanted) == set(unwanted)


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fapi.py", "%2e%2e"])
def test_no_other_file_is_served(client: Client, name: str) -> None:
    assert client.get(f"/static/{name}").status_code in (400, 404)


def test_the_shell_and_the_script_agree(elements: Elements) -> None:
    ids: set[Any] = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    used = set(re.findall(r'\$\("([\w-]+)"\)', asset("app.js").plain.decode()))
    assert len(used) > 20
    assert used <= ids
