"""The status page's shell and assets: nothing from elsewhere, nothing inline, addressed by content."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fleet_double import FleetDouble
from litestar import Litestar
from litestar.testing import TestClient

from coordinator.service import pages
from coordinator.service.api import create_app
from coordinator.service.auth import TokenVerifier
from coordinator.service.pages import MODULES, asset

NAMES = (*MODULES, "style.css", "favicon.svg")
STATIC = Path(pages.__file__).parent / "static"
MOST_LINES = 200
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
            assert address is None or re.match(r"/(?!/)|#", address), (tag, address)


def test_our_own_assets_name_no_other_host() -> None:
    for name in (*MODULES, "style.css"):
        text = asset(name).plain.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")|@import|url\(", text), name  # that one names a language, not a host
        assert "innerHTML" not in text, name


def test_what_labels_something_is_there(elements: Elements) -> None:
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    named = {attributes[name] for _, attributes in elements.found for name in ("aria-labelledby", "for") if name in attributes}
    assert named - {"confirm-title"} <= ids  # that heading is made with each question
    assert ("html", {"lang": "en"}) in elements.found


def test_every_module_is_served_is_short_and_is_asked_for_at_once(elements: Elements) -> None:
    assert sorted(MODULES) == sorted(path.name for path in (STATIC / "js").iterdir())
    for name in MODULES:
        assert len((STATIC / "js" / name).read_text().splitlines()) <= MOST_LINES, name
    preloaded = {attributes["href"] for _, attributes in elements.found if attributes.get("rel") == "modulepreload"}
    assert preloaded == {f"/static/{name}?v={asset(name).digest}" for name in MODULES}


def test_modules_name_what_they_import_by_its_content() -> None:
    for name in MODULES:
        imports = re.findall(r'from "([^"]+)"', asset(name).plain.decode())
        for address in imports:
            imported, _, digest = address.removeprefix("./").partition("?v=")
            assert digest == asset(imported).digest, (name, address)
    assert len(re.findall(r'from "', asset("app.js").plain.decode())) > 10


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


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fapi.py", "%2e%2e"])
def test_no_other_file_is_served(client: Client, name: str) -> None:
    assert client.get(f"/static/{name}").status_code in (400, 404)


def test_the_shell_and_the_scripts_agree(elements: Elements) -> None:
    ids: set[Any] = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    used = {found for name in MODULES for found in re.findall(r'\$\("([\w-]+)"\)', asset(name).plain.decode())}
    assert len(used) > 12
    assert used <= ids
