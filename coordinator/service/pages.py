"""The status page: one HTML shell, our own script and style, and Plotly's script from its wheel. Nothing from elsewhere.

The shell holds no data; static/app.js fills it from /api/v1. Assets are addressed by the hash of their content, so browsers may
keep them for ever. Source of the chart library: plotly.py ships plotly.min.js as package data.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery

from coordinator.service.problems import NotFound
from coordinator.service.view import FleetView
from shared.refusal import RefusalCode

_FOREVER: Final = "public, max-age=31536000, immutable"
_SOURCES: Final = {
    "app.js": ("coordinator.service", "static/app.js", "text/javascript"),
    "chart.js": ("coordinator.service", "static/chart.js", "text/javascript"),
    "report.css": ("coordinator.service", "static/report.css", "text/css"),
    "style.css": ("coordinator.service", "static/style.css", "text/css"),
    "favicon.svg": ("coordinator.service", "static/favicon.svg", "image/svg+xml"),
    "plotly.min.js": ("plotly", "package_data/plotly.min.js", "text/javascript"),
}


class Asset(msgspec.Struct, frozen=True, kw_only=True):
    """One static file, compressed once."""

    plain: bytes
    zipped: bytes
    media_type: str
    digest: str


def page_handlers() -> list[HTTPRouteHandler]:
    """The routes `/` and `/static/NAME`."""
    return [page, static]


@cache
def asset(name: str) -> Asset:
    """A static file by name. KeyError where there is none; FileNotFoundError = a broken installation."""
    package, path, media_type = _SOURCES[name]
    plain = files(package).joinpath(path).read_bytes()
    return Asset(plain=plain, zipped=gzip.compress(plain, 6), media_type=media_type, digest=hashlib.sha256(plain).hexdigest()[:16])


@cache
def shell() -> Template:
    """The page's HTML with the addresses of its assets filled in; `$version` and `$name` are left."""
    html = files("coordinator.service").joinpath("static/index.html").read_text(encoding="utf-8")
    for name in _SOURCES:
        html = html.replace(f"/static/{name}", f"/static/{name}?v={asset(name).digest}")
    return Template(html.replace("<!-- sheets -->", _unwanted_sheets(asset("plotly.min.js").plain)))


def _unwanted_sheets(script: bytes) -> str:
    """Elements that keep Plotly from adding its map library's inline style sheet, which our CSP refuses and no chart of ours needs.

    The script adds a sheet only where no element has the sheet's id, a SHA-256 in hexadecimal that changes with its version.
    """
    ids = sorted(set(re.findall(rb'getElementById\("([0-9a-f]{64})"\)', script)))
    return "".join(f'<meta name="unwanted-sheet" id="{sheet.decode()}">' for sheet in ids)


@get("/", media_type="text/html", include_in_schema=False, sync_to_thread=False)
def page(state: State) -> Response[str]:
    """The status page."""
    view: FleetView = state["view"]
    fleet = view.fleet()
    html = shell().substitute(version=_escape(fleet.version), name=_escape(fleet.name))
    return Response(html, media_type="text/html")


@get("/static/{name:str}", include_in_schema=False, sync_to_thread=False)
def static(request: Request[Any, Any, Any], name: FromPath[str], v: FromQuery[str | None] = None) -> Response[bytes]:
    """One asset, gzipped for whoever takes it; cached for ever when asked for by the right hash."""
    if name not in _SOURCES:
        raise NotFound(RefusalCode.INVALID_VALUE, "name", name, ", ".join(_SOURCES))
    found = asset(name)
    zipped = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"Cache-Control": _FOREVER if v == found.digest else "no-cache", "Vary": "Accept-Encoding", "ETag": f'"{found.digest}"'}
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return Response(found.zipped if zipped else found.plain, media_type=found.media_type, headers=headers)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
