"""`tidegate alert`: look at alerts, look after them, silence them, through the API of a running coordinator."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from typing import Any, Final

import click

from shared.errors import ConfigError, HostError

DEFAULT_URL: Final = "http://127.0.0.1:8080"
URL_VARIABLE: Final = "TIDEGATE_URL"
TOKEN_VARIABLE: Final = "TIDEGATE_TOKEN"
TIMEOUT_S: Final = 30.0
_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400}
_MATCHER: Final = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)(=~|!~|!=|=)(.*)")

URL = click.option(
    "--url", default=lambda: os.environ.get(URL_VARIABLE, DEFAULT_URL), help=f"Coordinator [default: ${URL_VARIABLE} or {DEFAULT_URL}]."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="The API's own answer.")


@click.group()
def alert() -> None:
    """Alerts of a running coordinator; changes need a token in $TIDEGATE_TOKEN."""


@alert.command("list")
@URL
@AS_JSON
@click.option("--state", type=click.Choice(["pending", "firing", "resolved"]), help="Only those.")
@click.option("--severity", type=click.Choice(["info", "warning", "critical"]), help="Only those.")
@click.option("--rule", help="Only those of this rule.")
def list_(url: str, as_json: bool, **wanted: str | None) -> None:
    """What fires, the newest first."""
    asked = {"status" if name == "state" else name: value for name, value in wanted.items() if value}
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = _ask("GET", url, "alerts", params={"limit": "1000", **asked, **cursor})
        items += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    if as_json:
        click.echo(json.dumps(items, indent=1))
        return
    for each in items:
        notes = "".join([" (silenced)" if each["silenced_by"] else "", f" ({each['acknowledged_by']})" if each["acknowledged_by"] else ""])
        click.echo(
            f"{_at(each['started_s'])}  {each['state']:8}  {each['severity']:8}  {each['id']}  {each['rule']}: {each['summary']}{notes}"
        )


@alert.command()
@URL
@click.argument("alert_id")
def show(url: str, alert_id: str) -> None:
    """One alert whole: numbers, labels, what to do."""
    click.echo(json.dumps(_ask("GET", url, f"alerts/{alert_id}"), indent=1))


@alert.command()
@URL
@AS_JSON
def rules(url: str, as_json: bool) -> None:
    """Rules in force with their thresholds, and the receivers."""
    found = _ask("GET", url, "alerts/rules")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for rule in found["rules"]:
        bound = "" if rule["threshold"] is None else f" [{rule['threshold']:g} {rule['unit']}]"
        click.echo(f"{rule['name']:22} {rule['severity']:8} after {rule['for_s'] / 60:g} min{bound}: {rule['meaning']}")
    for receiver in found["receivers"]:
        click.echo(f"{receiver['name']}: {receiver['waiting']} waiting{', ' + receiver['error'] if receiver['error'] else ''}")


@alert.command()
@URL
@click.argument("alert_id")
@click.option("--comment", default="", help="What you do about it.")
def ack(url: str, alert_id: str, comment: str) -> None:
    """Say that you look after an alert: nobody is reminded of it again."""
    found = _ask("POST", url, f"alerts/{alert_id}/acknowledgement", json={"comment": comment})
    click.echo(f"{found['rule']}: acknowledged by {found['acknowledged_by']}")


@alert.command()
@URL
@click.argument("matchers", nargs=-1, required=True)
@click.option("--for", "duration", default="2h", show_default=True, help="How long: 30m, 2h, 7d.")
@click.option("--comment", required=True, help="Why.")
def silence(url: str, matchers: tuple[str, ...], duration: str, comment: str) -> None:
    """Tell nobody of alerts whose labels fit all MATCHERS: alertname=HostBusy host=~kvm-1.* client!=aurora"""
    body = {"matchers": [matcher(text) for text in matchers], "duration_s": seconds(duration), "comment": comment}
    found = _ask("POST", url, "silences", json=body)["silence"]
    click.echo(f"{found['id']} until {_at(found['ends_s'])}")


@alert.command()
@URL
@AS_JSON
def silences(url: str, as_json: bool) -> None:
    """Silences in force, to come, and ended within a week."""
    found = _ask("GET", url, "silences")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for each in found:
        told = each["silence"]
        shown = " ".join(f"{m['name']}{'' if m['equal'] else '!'}{'=~' if m['regex'] else '='}{m['value']}" for m in told["matchers"])
        state = "active" if each["active"] else "over or to come"
        click.echo(f"{told['id']}  {state}  until {_at(told['ends_s'])}  {shown}  {told['created_by']}: {told['comment']}")


@alert.command()
@URL
@click.argument("silence_id")
def unsilence(url: str, silence_id: str) -> None:
    """End a silence now."""
    found = _ask("DELETE", url, f"silences/{silence_id}")["silence"]
    click.echo(f"{found['id']} ended {_at(found['ends_s'])}")


def matcher(text: str) -> dict[str, Any]:
    """`name=value`, `!=`, `=~` or `!~` as the API has it. Raises ConfigError."""
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise ConfigError(f"matcher {text!r}: allowed are LABEL=VALUE, LABEL!=VALUE, LABEL=~REGEX, LABEL!~REGEX")
    return {"name": found[1], "value": found[3], "regex": "~" in found[2], "equal": "!" not in found[2]}


def seconds(text: str) -> int:
    """`30m`, `2h`, `7d`. Raises ConfigError."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}[mhd]", text):
        raise ConfigError(f"--for {text!r}: allowed is a whole number and m, h or d, e.g. 30m")
    return int(text[:-1]) * _UNITS[text[-1]]


def _ask(method: str, url: str, path: str, **more: Any) -> Any:
    import httpx  # noqa: PLC0415  # a tenth of a second that other commands need not wait for

    token = os.environ.get(TOKEN_VARIABLE, "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.request(method, f"{url.rstrip('/')}/api/v1/{path}", headers=headers, timeout=TIMEOUT_S, **more)
        told = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise HostError(f"{url}: {error}") from error
    if answer.is_error:
        raise click.ClickException(f"{told.get('code') or answer.status_code}: {told.get('detail', answer.text)}")
    return told


def _at(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
