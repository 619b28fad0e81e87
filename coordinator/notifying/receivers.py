"""What receivers of alerts are sent: Alertmanager's API v2 and our own signed webhook. Requests only; sending is delivery.py's.

Alertmanager: `startsAt` is when the alert fired, `endsAt` of one that fires lies LEASE resends ahead (as Prometheus does it), so that it
outlives three lost messages and dies by itself when we do; of a resolved one it is when it was resolved. Annotations are texts, labels are
the alert's.
Webhook: the body of a note is the same bytes at every try, and `Tidegate-Delivery` its id: a receiver that remembers ids acts once. The
signature is HMAC-SHA256 over "TIMESTAMP.BODY" with the shared secret, so a copy is worthless once the receiver finds its timestamp too
old.
Sources: https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml; RFC 2104.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from coordinator.learning.alerts import Alert, AlertState, all_labels
from coordinator.store.alerts import Entry, Note
from shared.config_alerts import AlertsConfig
from shared.errors import HostError

LEASE: Final = 4  # resends that an alert outlives without one
WEBHOOK_VERSION: Final = 1
NAME_CHARS: Final = 128  # of an address in a receiver's name; the registry's column holds 160
SIGNATURE: Final = "Tidegate-Signature"
DELIVERY: Final = "Tidegate-Delivery"
TIMESTAMP: Final = "Tidegate-Timestamp"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One POST."""

    url: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """Somebody to be told. `name` is stable, and free of what a URL may hold of secrets."""

    name: str
    message: Callable[[Note, float], Message]  # a note, at a Unix time (real)
    again: Callable[[Sequence[Alert], float], Message] | None = None  # all that fires; None = is not told again


def receivers_of(config: AlertsConfig, page_url: str, real_s: Callable[[float], float]) -> tuple[Receiver, ...]:
    """Those of the settings. `real_s` turns times of the coordinator's clock, which may be simulated, into the world's."""
    managers = [_alertmanager(url, config, page_url, real_s) for url in config.alertmanagers]
    return (*managers, *(_webhook(url, config, page_url, real_s) for url in config.webhooks))


def postable(alert: Alert, *, now_s: float, lease_s: float, page_url: str, real_s: Callable[[float], float]) -> dict[str, Any]:
    """One alert as Alertmanager wants it."""
    ends_s = real_s(alert.resolved_s) if alert.resolved_s is not None else now_s + lease_s
    # one that was resolved within its first second must not end before it starts
    value = "unknown" if alert.value is None else f"{alert.value:.6g}"
    starts_s = real_s(alert.fired_s if alert.fired_s is not None else alert.started_s)
    return {
        "labels": {name: value for name, value in all_labels(alert).items() if value},
        "annotations": {"summary": alert.summary, "action": alert.action, "value": value, "id": alert.id},
        "startsAt": rfc3339(min(starts_s, ends_s)),
        "endsAt": rfc3339(ends_s),
        "generatorURL": page_url + alert.page.removeprefix("/"),
    }


def document(note: Note, page_url: str, real_s: Callable[[float], float]) -> dict[str, Any]:
    """A webhook's body, documented in docs/alerts.md."""
    return {
        "version": WEBHOOK_VERSION,
        "id": note.id,
        "rule": note.rule,
        "status": "firing" if any(entry.alert.state is AlertState.FIRING for entry in note.entries) else "resolved",
        "created_at": rfc3339(real_s(note.created_s)),
        "alerts": [_entry(entry, page_url, real_s) for entry in note.entries],
    }


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """`sha256=` and 64 hexadecimal digits."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def rfc3339(seconds: float) -> str:
    """UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _alertmanager(url: str, config: AlertsConfig, page_url: str, real_s: Callable[[float], float]) -> Receiver:
    target = url.rstrip("/") + "/api/v2/alerts"
    lease_s = float(LEASE * config.resend_s)

    def message(alerts: Iterable[Alert], now_s: float) -> Message:
        told = [postable(alert, now_s=now_s, lease_s=lease_s, page_url=page_url, real_s=real_s) for alert in alerts]
        return Message(url=target, body=msgspec.json.encode(told), headers={"Content-Type": "application/json", **_credentials(config)})

    return Receiver(
        name=name_of("alertmanager", url),
        message=lambda note, now_s: message((entry.alert for entry in note.entries), now_s),
        again=message,
    )


def _webhook(url: str, config: AlertsConfig, page_url: str, real_s: Callable[[float], float]) -> Receiver:
    def message(note: Note, now_s: float) -> Message:
        body, timestamp = msgspec.json.encode(document(note, page_url, real_s)), str(int(now_s))
        headers = {"Content-Type": "application/json", DELIVERY: note.id, TIMESTAMP: timestamp}
        if config.secret_file:
            headers[SIGNATURE] = signature(_secret(config.secret_file).encode(), timestamp, body)
        return Message(url=url, body=body, headers=headers)

    return Receiver(name=name_of("webhook", url), message=message)


def name_of(kind: str, url: str) -> str:
    """`webhook:hooks.example:8443#3f2a9c`: where it goes, and which address there."""
    return f"{kind}:{urlsplit(url).netloc[:NAME_CHARS]}#{hashlib.sha256(url.encode()).hexdigest()[:6]}"


def _entry(entry: Entry, page_url: str, real_s: Callable[[float], float]) -> dict[str, Any]:
    alert = entry.alert

    def at(seconds: float | None) -> str | None:
        return None if seconds is None else rfc3339(real_s(seconds))

    return {
        "id": alert.id,
        "fingerprint": alert.fingerprint,
        "turn": entry.turn.value,
        "state": alert.state.value,
        "labels": all_labels(alert),
        "summary": alert.summary,
        "action": alert.action,
        "value": alert.value,
        "started_at": at(alert.started_s),
        "fired_at": at(alert.fired_s),
        "resolved_at": at(alert.resolved_s),
        "acknowledged_by": alert.acknowledged_by,
        "comment": alert.comment,
        "url": page_url + alert.page.removeprefix("/"),
    }


def _credentials(config: AlertsConfig) -> dict[str, str]:
    if config.user:
        pair = f"{config.user}:{_secret(config.password_file)}".encode()
        return {"Authorization": "Basic " + base64.b64encode(pair).decode()}
    return {"Authorization": f"Bearer {_secret(config.bearer_file)}"} if config.bearer_file else {}


def _secret(path: str) -> str:
    """Read for each message, so that a secret can be changed without a restart."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{path}: {error}") from error
