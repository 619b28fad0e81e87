"""Alerts in the running coordinator: looks at the rules, keeps the book durable, hands notes to the receivers. Wiring.

One look every `alerts.evaluate_s` of the coordinator's clock. What is judged once a bucket is worked out in a thread after each decision,
and stands until the next. A change is written with the notes that tell of it before any receiver hears of it; where the registry refuses,
it is kept and written later, in order, and the rule RegistryFailing says so. What is kept is bounded: one state of each alert,
MAX_UNWRITTEN notes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar
from uuid import uuid4

import msgspec
import structlog

from coordinator.alert_picture import PictureOf, Seen
from coordinator.learning import alerts as al
from coordinator.learning.alert_conditions import judged_by_bucket, judged_now
from coordinator.learning.alert_rules import rules_of
from coordinator.learning.silences import MAX_SILENCES, Silence
from coordinator.notifying.delivery import Delivery, open_client
from coordinator.notifying.receivers import receivers_of
from coordinator.own_state import certificate_days, disk_free
from coordinator.store.alerts import SILENCES_S, AlertStore, Entry, Note
from shared.clock import Clock
from shared.config import ClockConfig, CoordinatorConfig
from shared.errors import HostError, Refusal
from shared.metrics import Metrics
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

LEAST_LOOK_S: Final = 0.25  # real seconds from look to look, however fast the clock runs
CERTIFICATES_S: Final = 3600.0  # real seconds from one reading of our TLS files to the next
PRUNE_LOOKS: Final = 240
NOTE_ENTRIES: Final = 100  # alerts in one note: about 100 KB
MAX_UNWRITTEN: Final = 1000  # notes kept while the registry refuses

ACTIVE: Final = (al.AlertState.PENDING, al.AlertState.FIRING)

T = TypeVar("T")
log = structlog.get_logger("coordinator.alerts")


class Process(Protocol):
    """What alerting needs of the process around it, beside what alert_picture.py reads."""

    config: CoordinatorConfig
    clock: Clock
    metrics: Metrics

    async def read(self, function: Callable[..., T], *arguments: object) -> T:
        """A store's call, behind the writes before it."""
        ...


class Alerting:
    """Alerts of one coordinator. `run` is a loop like the others: its death is the process's."""

    def __init__(self, process: Process, store: AlertStore, picture: PictureOf) -> None:
        config = process.config
        self.rules = rules_of(config.alerts)
        self.picture = picture
        self._of, self._config, self._store = process, config.alerts, store
        self._limits = al.Limits(max_active=config.alerts.max_active, remind_s=float(config.alerts.remind_s))
        self.book = al.AlertBook(alerts={alert.id: alert for alert in store.load(al.MAX_RESOLVED)})
        self.silences: dict[str, Silence] = {each.id: each for each in store.silences()}
        self._client = open_client(config.alerts.ca_file)
        where = config.listen_http
        page_url = config.alerts.external_url.rstrip("/") + "/" if config.alerts.external_url else f"http://{where.host}:{where.port}/"
        told = receivers_of(config.alerts, page_url, real_time(config.clock))
        self.deliveries = tuple(
            Delivery(
                each,
                store,
                self._read,
                client=self._client,
                metrics=process.metrics,
                firing=self._firing,
                resend_s=float(config.alerts.resend_s),
            )
            for each in told
        )
        self._names = [each.receiver.name for each in self.deliveries]
        self._judged: list[al.Finding] = []
        self._certificates: tuple[float, dict[str, float | None]] = (-CERTIFICATES_S, {})
        self._unwritten: dict[str, al.Change] = {}
        self._notes: list[Note] = []
        self._error: str | None = None
        self._backlog: Mapping[str, tuple[int, int]] = {}
        self._looks = 0
        self.on_change: Callable[[Sequence[al.Change]], None] = lambda _changes: None  # who follows them live

    async def run(self) -> None:
        """Look, write and deliver, for good."""
        tasks = [asyncio.create_task(each.run(), name=f"alerts to {each.receiver.name}") for each in self.deliveries]
        tasks.append(asyncio.create_task(self._look_loop(), name="alerts"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.aclose()

    async def look(self) -> None:
        """Judge all rules now, and write down what changed."""
        started = time.perf_counter()
        if self.picture.decided():
            self._judged = await asyncio.to_thread(judged_by_bucket, self.picture.bucket(), self.rules)
        seen = await self._own()
        now_ns = self._of.clock.wall_ns()
        found = [*judged_now(self.picture.now(now_ns, seen), self.rules), *self._judged]
        look = al.Look(findings=found, blind=self.picture.blind(seen))
        self.book, changes = al.step(self.book, look, self.rules, list(self.silences.values()), now_ns / NS_PER_S, limits=self._limits)
        self._publish(time.perf_counter() - started)
        await self._write(changes)

    async def acknowledge(self, alert_id: str, who: str, comment: str) -> al.Alert | None:
        """Somebody looks after it. None = no such active alert."""
        self.book, change = al.acknowledge(self.book, alert_id, who, comment, self._of.clock.wall_ns() / NS_PER_S)
        if change is None:
            return None
        await self._write((change,))
        return change.alert

    async def silence(self, silence: Silence) -> Silence:
        """Durable when it returns; holds from the next look on. Refusal where there are too many."""
        now_s = self._of.clock.wall_ns() / NS_PER_S
        if silence.id not in self.silences and sum(each.ends_s > now_s for each in self.silences.values()) >= MAX_SILENCES:
            raise Refusal(RefusalCode.RATE_LIMITED, f"there are {MAX_SILENCES} silences already: end some of them")
        await self._read(self._store.save_silence, silence)
        self.silences[silence.id] = silence
        return silence

    async def end_silence(self, silence_id: str) -> Silence | None:
        """From now on it is over. None = no such silence."""
        silence = self.silences.get(silence_id)
        if silence is None:
            return None
        now_s = self._of.clock.wall_ns() / NS_PER_S
        return await self.silence(msgspec.structs.replace(silence, ends_s=min(silence.ends_s, now_s)))

    def waiting(self) -> dict[str, int]:
        """receiver -> notes that wait for it, as of the last look."""
        return {name: self._backlog.get(name, (0, 0))[0] for name in self._names}

    def errors(self) -> dict[str, str]:
        """receiver -> why it did not take the last message; none where it did."""
        return {each.receiver.name: each.error for each in self.deliveries if each.error is not None}

    async def _look_loop(self) -> None:
        while True:
            started = time.monotonic()
            await self.look()
            await self._of.clock.sleep(self._config.evaluate_s)
            await asyncio.sleep(max(0.0, LEAST_LOOK_S - (time.monotonic() - started)))

    async def _own(self) -> Seen:
        """What takes a disk or the registry to know."""
        if time.monotonic() - self._certificates[0] >= CERTIFICATES_S:
            tls = self._of.config.tls
            self._certificates = (time.monotonic(), await asyncio.to_thread(certificate_days, (tls.ca, tls.certificate), time.time()))
        free = await asyncio.to_thread(disk_free, Path(self._of.config.state_dir))
        with contextlib.suppress(HostError):  # the next write says it
            self._backlog = await self._read(self._store.backlog)
        return Seen(
            certificates=self._certificates[1],
            disk_free=free,
            registry_error=self._error,
            waiting_since_ns={name: at for name, (_, at) in self._backlog.items() if name in self._names},
            beyond=self.book.beyond,
            judged=self.picture.judged,
        )

    async def _write(self, changes: Sequence[al.Change]) -> None:
        """All that is not written yet, in one transaction; kept for the next time where the registry refuses."""
        for change in changes:
            self._unwritten.pop(change.alert.id, None)
            self._unwritten[change.alert.id] = change
        self.on_change(changes)
        if self._names:
            self._notes += notes_of(changes, self._of.clock.wall_ns() / NS_PER_S)
        if len(self._notes) > MAX_UNWRITTEN:
            lost, self._notes = len(self._notes) - MAX_UNWRITTEN, self._notes[-MAX_UNWRITTEN:]
            log.error("alert_notes_lost", notes=lost, reason="the registry has refused for too long")
        states, notes = list(self._unwritten.values()), list(self._notes)
        self._looks += 1
        try:
            if states or notes:
                await self._read(self._store.save, states, notes, self._names)
            if self._looks % PRUNE_LOOKS == 1:
                await self._prune()
        except HostError as error:
            if self._error is None:
                log.error("alerts_not_written", reason=str(error))
            self._error = str(error)[:200]
            return
        self._error = None
        for change in states:
            if self._unwritten.get(change.alert.id) is change:
                del self._unwritten[change.alert.id]
        written = {note.id for note in notes}
        self._notes = [note for note in self._notes if note.id not in written]
        if notes:
            for each in self.deliveries:
                each.wake()

    async def _prune(self) -> None:
        now_s = self._of.clock.wall_ns() / NS_PER_S
        lost = await self._read(self._store.prune, now_s, self._names)
        if lost:
            log.warning("alert_notes_dropped", notes=lost, reason="too many for one receiver, or for one that is not set any more")
        self.silences = {key: each for key, each in self.silences.items() if each.ends_s > now_s - SILENCES_S}

    async def _read(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._of.read(function, *arguments)

    def _firing(self) -> list[al.Alert]:
        return self.book.firing_told()

    def _publish(self, took_s: float) -> None:
        metrics, counts = self._of.metrics, dict.fromkeys([(s, t) for s in al.Severity for t in ACTIVE], 0)
        for alert in self.book.alerts.values():
            if alert.active:
                counts[alert.severity, alert.state] += 1
        for (severity, state), count in counts.items():
            metrics.set("tidegate_alerts", count, severity=severity, state=state)
        metrics.set("tidegate_alerts_hidden", self.book.beyond)
        for name, waiting in self.waiting().items():
            metrics.set("tidegate_alert_notifications_waiting", waiting, receiver=name)
        metrics.observe("tidegate_alert_look_duration_seconds", took_s)


def notes_of(changes: Sequence[al.Change], now_s: float) -> list[Note]:
    """What receivers are to hear of these changes: grouped by rule, each alert once, at most NOTE_ENTRIES in a note."""
    by_rule: dict[str, list[Entry]] = {}
    for change in changes:
        if change.tell:
            by_rule.setdefault(change.alert.rule, []).append(Entry(turn=change.turn, alert=change.alert))
    return [
        Note(id=uuid4().hex, created_s=now_s, rule=rule, entries=tuple(entries[start : start + NOTE_ENTRIES]))
        for rule, entries in by_rule.items()
        for start in range(0, len(entries), NOTE_ENTRIES)
    ]


def real_time(clock: ClockConfig) -> Callable[[float], float]:
    """From the coordinator's clock to the world's, which is where receivers live."""
    if clock.speed == 0:
        return lambda seconds: seconds
    start_s, real_start_s = clock.simulated_start_ns / NS_PER_S, clock.real_start_ns / NS_PER_S
    return lambda seconds: real_start_s + (seconds - start_s) / clock.speed
