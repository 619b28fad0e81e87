"""The way to a running coordinator: where it is, the token, one request at a time, and how an answer is shown.

Address and token come from options, else the environment (TIDEGATE_URL, TIDEGATE_TOKEN), else a TOML file with `url`, `token_file`
and `ca`. A token is no option: it would be seen in the list of processes. No proxy is asked. Bounded: TIMEOUT_S a request,
MAX_ANSWER_BYTES of answer.
"""

from __future__ import annotations

import json
import os
import ssl
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import click

from shared.errors import ConfigError, HostError, Refusal
from shared.refusal import RefusalCode

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # every VM of a large fleet, page by page, is less
PAGE: Final = 1000
MAX_SHOWN_CHARS: Final = 48  # of a table's cell

Command = Callable[..., Any]


class ApiRefusal(Refusal):
    """What the coordinator refused, in its own words; `status` of HTTP."""

    def __init__(self, code: RefusalCode, detail: str, status: int) -> None:
        super().__init__(code, detail)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """A JSON answer and its ETag."""

    body: Any
    etag: str


class Door:
    """One coordinator. Raises ConfigError for an address or token file that is none."""

    def __init__(self, url: str | None, token_file: Path | None, ca: Path | None) -> None:
        settings = _settings()
        self.url = (url or os.environ.get("TIDEGATE_URL") or settings.get("url") or DEFAULT_URL).rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url {self.url!r}: allowed http://HOST[:PORT] or https://HOST[:PORT]")
        self._token = _token(token_file, settings)
        authority = ca or (Path(settings["ca"]) if "ca" in settings else None)
        try:
            context = ssl.create_default_context(cafile=None if authority is None else str(authority))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca {authority}: {error}; a file of certificates in PEM is needed") from error
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request of /api/v1. Raises ApiRefusal (it said no) or HostError (it cannot be reached, or failed)."""
        sent = {"Accept": "application/json", **(headers or {})}
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", data=content, headers=sent, method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as reply:
                return Answer(_json(reply.read(MAX_ANSWER_BYTES)), reply.headers.get("ETag", ""))
        except urllib.error.HTTPError as error:
            raise _refused(error.code, error.read(MAX_ANSWER_BYTES), self.url) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise HostError(f"{self.url}: {reason}; is `tidegate run` there? (--url, TIDEGATE_URL)") from error

    def pages(self, path: str, **query: str | None) -> Iterator[dict[str, Any]]:
        """Every item of a list that comes in pages."""
        asked = {name: value for name, value in query.items() if value is not None} | {"limit": str(PAGE)}
        while True:
            page = self.ask("GET", f"{path}?{urllib.parse.urlencode(asked)}").body
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]


def with_door(command: Command) -> Command:
    """Adds --url, --token-file, --ca and --json; the command gets `door: Door` and `as_json: bool` as its first arguments."""

    def called(url: str | None, token_file: Path | None, ca: Path | None, as_json: bool, **given: Any) -> Any:
        return command(Door(url, token_file, ca), as_json, **given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]  # what was declared below this decorator
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the API's own JSON."),
        click.option("--ca", type=click.Path(path_type=Path), help="Certificates that an https coordinator must be signed by."),
        click.option("--token-file", type=click.Path(path_type=Path), help="File with the token [default: $TIDEGATE_TOKEN]."),
        click.option("--url", help=f"The coordinator [default: $TIDEGATE_URL, else {DEFAULT_URL}]."),
    ):
        option(called)
    return called


def quoted(text: str) -> str:
    """An id as a part of a path."""
    return urllib.parse.quote(text, safe="")


def show(value: Any, as_json: bool, columns: Sequence[str] = ()) -> None:
    """An answer: as JSON, as a table of these columns (dots reach inside), or field by field."""
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif isinstance(value, list):
        rows = [[_cell(_reached(item, column)) for column in columns] for item in value]
        widths = [max(map(len, cells)) for cells in zip(*rows, columns, strict=True)] if rows else [len(column) for column in columns]
        for cells in [list(columns), *rows]:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    else:
        width = max(map(len, value), default=0)
        for name, part in value.items():
            click.echo(f"{name.ljust(width)}  {part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)}")


def _reached(item: Any, column: str) -> Any:
    for part in column.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def _cell(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def _json(raw: bytes) -> Any:
    return json.loads(raw) if raw else None


def _refused(status: int, raw: bytes, url: str) -> Exception:
    try:
        problem = json.loads(raw)
        return ApiRefusal(RefusalCode(problem["code"]), problem["detail"], status)
    except (ValueError, KeyError, TypeError):  # no problem of ours, or of a newer coordinator
        return HostError(f"{url}: HTTP {status}: {raw[:200].decode(errors='replace')}")


def _settings() -> dict[str, str]:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = Path(os.environ.get("TIDEGATE_CLI_CONFIG") or home / "tidegate" / "cli.toml")
    if not path.exists():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{path}: {error}") from error
    for name, value in found.items():
        if name not in ("url", "token_file", "ca") or not isinstance(value, str):
            raise ConfigError(f"{path}: {name} = {value!r}; allowed are url, token_file and ca, as text")
    return found


def _token(token_file: Path | None, settings: Mapping[str, str]) -> str:
    if token_file is None and (given := os.environ.get("TIDEGATE_TOKEN")):
        return given.strip()
    path = token_file or (Path(settings["token_file"]) if "token_file" in settings else None)
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path}: {getattr(error, 'strerror', None) or error}") from error
