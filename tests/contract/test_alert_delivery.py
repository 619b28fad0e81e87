"""Alerts to a real alertmanager and a real webhook: in order, each once, none lost while a receiver is away or the process starts anew."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from alert_receivers import Alertmanager, Hook, free_port
from alerts_double import alert_of

from coordinator.alerting import notes_of
from coordinator.learning.alerts import Alert, AlertState, Change, Turn
from coordinator.learning.silences import Matcher, Silence
from coordinator.notifying.delivery import MAX_WRONG, Delivery, open_client
from coordinator.notifying.receivers import Receiver, receivers_of, rfc3339
from coordinator.store.alerts import MAX_WAITING, AlertStore
from coordinator.store.registry import SqlRegistry
from shared.config_alerts import AlertsConfig
from shared.errors import ConfigError
from shared.metrics import COORDINATOR_METRICS, Metrics

NOW = int(time.time()) - 600  # an alertmanager lives in the world's time


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AlertStore]:
    registry = SqlRegistry(f"sqlite:///{tmp_path / 'registry.sqlite'}")
    yield AlertStore(registry.engine)
    registry.close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook(b"topsecret")
    yield server
    server.close()


@contextmanager
def running(manager: Alertmanager) -> Iterator[Alertmanager]:
    manager.start()
    try:
        yield manager
    finally:
        manager.stop()


async def read(function: Callable[..., Any], *arguments: object) -> Any:
    return await asyncio.to_thread(function, *arguments)


def change(turn: Turn, state: AlertState, host: str = "kvm-1", started_s: int = NOW) -> Change:
    return Change(turn=turn, alert=alert_of("AgentStale", state, started_s, host=host), tell=True)


def tell(store: AlertStore, receiver: Receiver, *changes: Change) -> None:
    """Each change by itself, as looks one after the other do."""
    for each in changes:
        store.save([each], notes_of([each], NOW), [receiver.name])


def receiver_of(config: AlertsConfig) -> Receiver:
    (found,) = receivers_of(config, "http://tidegate/", lambda seconds: seconds)
    return found


async def deliver(
    store: AlertStore,
    receiver: Receiver,
    enough: Callable[[], object],
    *,
    firing: Callable[[], list[Alert]] = list,
    metrics: Metrics | None = None,
    ca_file: str = "",
) -> Delivery:
    """Run one delivery until `enough` is so, at most 30 s."""
    client = open_client(ca_file)
    told = metrics or Metrics(COORDINATOR_METRICS)
    delivery = Delivery(receiver, store, read, client=client, metrics=told, firing=firing, resend_s=5.0, first_wait_s=0.02)
    task = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(enough):  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()
    return delivery


def until_empty(store: AlertStore) -> Callable[[], bool]:
    return lambda: not store.backlog()


def test_a_webhook_gets_every_change_once_in_order_and_signed(store: AlertStore, hook: Hook, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("topsecret\n")
    receiver = receiver_of(AlertsConfig(webhooks=(hook.url,), secret_file=str(secret)))
    tell(
        store,
        receiver,
        change(Turn.FIRED, AlertState.FIRING),
        change(Turn.ACKNOWLEDGED, AlertState.FIRING),
        change(Turn.RESOLVED, AlertState.RESOLVED),
    )
    asyncio.run(deliver(store, receiver, until_empty(store)))
    assert hook.turns("AgentStale") == ["fired", "acknowledged", "resolved"]
    assert [note["status"] for note in hook.notes()] == ["firing", "firing", "resolved"]
    assert [note["id"] for note in hook.notes()] == [headers["Tidegate-Delivery"] for headers, _ in hook.got]
    assert hook.signed(0) and hook.signed(1) and hook.signed(2)
    assert "secret" not in receiver.name


def test_a_webhook_that_is_away_gets_all_of_it_later(store: AlertStore, hook: Hook) -> None:
    receiver = receiver_of(AlertsConfig(webhooks=(hook.url,)))
    tell(store, receiver, *(change(Turn.FIRED, AlertState.FIRING, f"kvm-{n}") for n in range(5)))
    hook.status = 503
    metrics = Metrics(COORDINATOR_METRICS)
    down = asyncio.run(deliver(store, receiver, lambda: len(hook.tries) >= 3, metrics=metrics))
    assert "HTTP 503: no" in str(down.error)
    assert f'outcome="failed",receiver="{receiver.name}"' in metrics.render().decode()
    assert len({bytes(body) for body in hook.tries}) == 1  # the first one, and the same bytes: what follows has to wait
    hook.status = 200
    asyncio.run(deliver(store, receiver, until_empty(store)))  # a process that starts anew
    hosts = [note["alerts"][0]["labels"]["host"] for note in hook.notes()]
    assert hosts == [f"kvm-{n}" for n in range(5)]
    assert len({note["id"] for note in hook.notes()}) == 5


def test_what_a_receiver_calls_wrong_holds_up_nothing(store: AlertStore, hook: Hook) -> None:
    receiver = receiver_of(AlertsConfig(webhooks=(hook.url,)))
    tell(store, receiver, change(Turn.FIRED, AlertState.FIRING))
    hook.status = 422
    metrics = Metrics(COORDINATOR_METRICS)
    asyncio.run(deliver(store, receiver, until_empty(store), metrics=metrics))
    assert len(hook.tries) == MAX_WRONG
    assert f'outcome="refused",receiver="{receiver.name}"' in metrics.render().decode()


def test_a_wrong_password_waits_for_its_repair(store: AlertStore, hook: Hook) -> None:
    receiver = receiver_of(AlertsConfig(webhooks=(hook.url,)))
    tell(store, receiver, change(Turn.FIRED, AlertState.FIRING))
    hook.status = 401
    asyncio.run(deliver(store, receiver, lambda: len(hook.tries) > MAX_WRONG + 1))
    assert store.backlog()[receiver.name][0] == 1


def test_an_alertmanager_that_is_away_is_told_when_it_is_back(store: AlertStore, tmp_path: Path, hook: Hook) -> None:
    manager = Alertmanager(tmp_path / "am", hook_url=f"http://127.0.0.1:{hook.port}/am")
    receiver = receiver_of(AlertsConfig(alertmanagers=(manager.url,)))
    fired, gone = change(Turn.FIRED, AlertState.FIRING, "kvm-1"), change(Turn.FIRED, AlertState.FIRING, "kvm-2")
    tell(store, receiver, fired, gone)
    down = asyncio.run(_until_failed(store, receiver))
    assert down.error is not None
    assert store.backlog()[receiver.name][0] == 2
    with running(manager):
        asyncio.run(deliver(store, receiver, until_empty(store)))
        alerts = {each["labels"]["host"]: each for each in manager.alerts()}
        assert alerts.keys() == {"kvm-1", "kvm-2"}
        one = alerts["kvm-1"]
        assert one["labels"] == {"alertname": "AgentStale", "severity": "critical", "host": "kvm-1"}
        assert one["startsAt"] == rfc3339(fired.alert.fired_s or 0.0)
        assert one["annotations"]["action"] == fired.alert.action
        assert one["generatorURL"].startswith("http://tidegate/")
        tell(store, receiver, change(Turn.RESOLVED, AlertState.RESOLVED, "kvm-2"))
        asyncio.run(deliver(store, receiver, until_empty(store)))
        assert [each["labels"]["host"] for each in manager.alerts()] == ["kvm-1"]
    # it forgets alerts when it starts anew: what fires is told again without anything in the outbox
    with running(manager):
        asyncio.run(deliver(store, receiver, lambda: manager.names() == ["AgentStale"], firing=lambda: [fired.alert]))
    assert not store.backlog()


def test_an_alertmanager_holds_an_alert_for_several_resends(store: AlertStore, tmp_path: Path) -> None:
    with running(Alertmanager(tmp_path / "am")) as manager:
        receiver = receiver_of(AlertsConfig(alertmanagers=(manager.url,), resend_s=60))
        tell(store, receiver, change(Turn.FIRED, AlertState.FIRING))
        asyncio.run(deliver(store, receiver, until_empty(store)))
        (alert,) = manager.alerts()
        assert alert["endsAt"] > alert["updatedAt"]
        (ends, updated) = (_unix(alert[name]) for name in ("endsAt", "updatedAt"))
        assert 235 < ends - updated <= 245


def test_passwords_are_read_for_each_message(tmp_path: Path, hook: Hook) -> None:
    password = tmp_path / "password"
    password.write_text("old")
    config = AlertsConfig(alertmanagers=(f"http://127.0.0.1:{free_port()}",), user="ops", password_file=str(password))
    receiver = receiver_of(config)
    assert receiver.again is not None
    before = receiver.again([], 0.0).headers["Authorization"]
    password.write_text("new")
    assert receiver.again([], 0.0).headers["Authorization"] != before
    bearer = receiver_of(AlertsConfig(alertmanagers=config.alertmanagers, bearer_file=str(password)))
    assert bearer.again is not None and bearer.again([], 0.0).headers["Authorization"] == "Bearer new"


def test_tls_receivers_are_checked_against_the_given_authority(store: AlertStore, tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    hook = Hook(tls=tls)
    try:
        receiver = receiver_of(AlertsConfig(webhooks=(hook.url,)))
        tell(store, receiver, change(Turn.FIRED, AlertState.FIRING))
        for name, authority in (("other", other), ("ours", ca)):
            authority.cert_pem.write_to_path(tmp_path / name)
        stranger = asyncio.run(_until_failed(store, receiver, str(tmp_path / "other")))
        assert "certificate verify failed" in str(stranger.error)
        assert hook.got == []
        asyncio.run(deliver(store, receiver, until_empty(store), ca_file=str(tmp_path / "ours")))
        assert hook.turns("AgentStale") == ["fired"]
    finally:
        hook.close()
    with pytest.raises(ConfigError, match=r"alerts\.ca_file"):
        open_client(str(tmp_path / "nothing"))


def test_the_store_keeps_alerts_silences_and_order(store: AlertStore) -> None:
    first, second = change(Turn.FIRED, AlertState.FIRING, "a"), change(Turn.FIRED, AlertState.FIRING, "b")
    notes = notes_of([first, second], NOW)
    assert len(notes) == 1 and len(notes[0].entries) == 2  # one rule, one note
    store.save([first, second], notes, ["x", "y"])
    store.save([first, second], notes, ["x", "y"])  # the same again
    assert {name: count for name, (count, _) in store.backlog().items()} == {"x": 1, "y": 1}
    assert sorted(alert.id for alert in store.load(10)) == sorted([first.alert.id, second.alert.id])
    store.save([Change(turn=Turn.DROPPED, alert=second.alert)], [], ["x"])
    assert [alert.id for alert in store.load(10)] == [first.alert.id]
    (waiting,) = store.waiting("x", 10)
    store.taken(waiting.place)
    assert store.waiting("x", 10) == []
    silence = Silence(id="s", matchers=(Matcher(name="host", value="a"),), starts_s=0.0, ends_s=10.0, created_by="o", comment="c")
    store.save_silence(silence)
    store.save_silence(msgspec.structs.replace(silence, ends_s=5.0))
    assert [each.ends_s for each in store.silences()] == [5.0]
    assert store.prune(NOW + 40 * 86_400, ["x"]) == 1  # y is no receiver any more
    assert store.silences() == []
    assert len(store.load(10)) == 1  # it still fires


def test_the_outbox_is_bounded(store: AlertStore) -> None:
    each = change(Turn.FIRED, AlertState.FIRING)
    notes = [note for _ in range(MAX_WAITING + 3) for note in notes_of([each], NOW)]
    store.save([each], notes, ["x"])
    assert store.prune(NOW, ["x"]) == 3
    assert store.waiting("x", 1)[0].note.id == notes[3].id


async def _until_failed(store: AlertStore, receiver: Receiver, ca_file: str = "") -> Delivery:
    metrics = Metrics(COORDINATOR_METRICS)
    found = await deliver(store, receiver, lambda: b'outcome="failed"' in metrics.render(), metrics=metrics, ca_file=ca_file)
    await asyncio.sleep(0.1)  # the transport of a handshake that failed closes some turns of the loop later
    return found


def _unix(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
