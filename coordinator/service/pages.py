"""The status page: one HTML shell, our own modules and style. Nothing from elsewhere, nothing inline, no build step.

The shell holds no data; static/js/app.js fills it from /api/v1. Assets are addressed by the hash of their content, so browsers may keep
them for ever; a module names those that it imports by their hash too, so its own hash changes with theirs. Invariant: imports between
modules have no cycle (there would be no first hash).
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
_PACKAGE: Final = "coordinator.service"
_IMPORT: Final = re.compile(r'(?<=from "\./)([a-z_]+\.js)(?=";)')
MODULES: Final = (
    *("app.js", "api.js", "chart.js", "dom.js", "freshness.js", "heat.js", "live.js", "orders.js", "session.js", "tables.js", "units.js"),
    *("view_alerts.js", "view_audit.js", "view_clients.js", "view_fleet.js", "view_host.js", "view_plan.js", "view_quality.js"),
    *("view_shadow.js", "view_vm.js", "view_vms.js", "vm_orders.js", "vm_why.js", "wrong.js"),
)
_SOURCES: Final = {
    **{name: (f"static/js/{name}", "text/javascript") for name in MODULES},
    "report.css": ("static/report.css", "text/css"),
    "style.css": ("static/style.css", "text/css"),
    "favicon.svg": ("static/favicon.svg", "image/svg+xml"),
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
    path, media_type = _SOURCES[name]
    plain = files(_PACKAGE).joinpath(path).read_bytes()
    if name in MODULES:
        plain = _IMPORT.sub(lambda found: f"{found[0]}?v={asset(found[0]).digest}", plain.decode()).encode()
    return Asset(plain=plain, zipped=gzip.compress(plain, 6), media_type=media_type, digest=hashlib.sha256(plain).hexdigest()[:16])


@cache
def shell() -> Template:
    """The page's HTML with the addresses of its assets filled in; `$version` and `$name` are left."""
    html = files(_PACKAGE).joinpath("static/index.html").read_text(encoding="utf-8")
    # all modules at once: found one import after the other they would take a round trip for each depth
    preloads = "\n".join(f'<link rel="modulepreload" href="/static/{name}">' for name in MODULES)
    html = html.replace("<!-- modules -->", preloads)
    for name in _SOURCES:
        html = html.replace(f'"/static/{name}"', f'"/static/{name}?v={asset(name).digest}"')
    return Template(html)


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
