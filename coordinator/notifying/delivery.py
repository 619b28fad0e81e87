"""Brings notes from the outbox to one receiver: in order, one at a time, again and again until it took them.

A note leaves the outbox only after a 2xx answer. Between tries the wait doubles from FIRST_WAIT_S to LONGEST_WAIT_S, each one a random
half to whole of it, so that coordinators that lost a receiver together do not come back together. What the receiver calls wrong in itself
(400, 413, 422) will never be taken: after MAX_WRONG tries it is put aside, logged and counted as `refused`, so that it holds up nothing
else; a wrong address or password (401, 403, 404) is the operator's to repair, and waits. Alertmanagers are also told again of all that
fires, every `resend_s`. All times here are real ones. Invariant: at most one request to a receiver at a time.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import httpx
import structlog

from coordinator.learning.alerts import Alert
from coordinator.notifying.receivers import Message, Receiver
from coordinator.store.alerts import AlertStore, Waiting
from shared.errors import ConfigError, HostError
from shared.metrics import Metrics

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 300.0
MAX_WRONG: Final = 3
BATCH: Final = 50  # notes read from the outbox at a time
AGAIN_BATCH: Final = 500  # alerts in one message; 1 KB each
TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 1024  # of an error's text that are read
WRONG: Final = frozenset({400, 413, 422})

T = TypeVar("T")
log = structlog.get_logger("coordinator.alerts")


class Read(Protocol):
    """A store's call, in order behind the others. Raises HostError."""

    def __call__(self, function: Callable[..., T], *arguments: object) -> Awaitable[T]: ...


class Refused(Exception):  # an answer, not a malfunction
    """The receiver did not take a message. `wrong`: it never will."""

    def __init__(self, detail: str, wrong: bool = False) -> None:
        super().__init__(detail)
        self.wrong = wrong


def open_client(ca_file: str) -> httpx.AsyncClient:
    """Raises ConfigError where the authorities cannot be read."""
    try:
        verify = ssl.create_default_context(cadata=Path(ca_file).read_text() if ca_file else None)
    except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"alerts.ca_file {ca_file}: {error}") from error
    # neither proxies of the environment nor redirects: a note goes where the settings say
    return httpx.AsyncClient(verify=verify, timeout=TIMEOUT_S, trust_env=False, follow_redirects=False)


class Delivery:
    """One receiver. `run` for good; `wake` when there is something new."""

    def __init__(
        self,
        receiver: Receiver,
        store: AlertStore,
        read: Read,
        *,
        client: httpx.AsyncClient,
        metrics: Metrics,
        firing: Callable[[], Sequence[Alert]],
        resend_s: float,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        self.receiver = receiver
        self.error: str | None = None  # why the last try failed
        self._store, self._read, self._client, self._metrics = store, read, client, metrics
        self._firing, self._resend_s = firing, resend_s
        self._first_wait_s = first_wait_s
        self._failures = 0
        self._wrong: tuple[str, int] = ("", 0)  # note, times that it was called wrong
        self._again_due = time.monotonic()  # at once: an Alertmanager may have lost what it knew
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """The outbox has something new."""
        self._woken.set()

    async def run(self) -> None:
        """For good. A fault of the receiver or of the registry is waited out."""
        while True:
            self._woken.clear()
            try:
                sent = await self.turn()
            except (Refused, HostError) as error:
                await self._back_off(str(error))
                continue
            self._failures, self.error = 0, None
            if not sent:
                await self._rest()

    async def turn(self) -> bool:
        """Send what waits, or else (Alertmanager) what fires. False: there was nothing to send. Raises Refused, HostError."""
        waiting = await self._read(self._store.waiting, self.receiver.name, BATCH)
        for each in waiting:
            await self._send_note(each)
        if waiting or self.receiver.again is None or time.monotonic() < self._again_due:
            return bool(waiting)
        firing = self._firing()
        for start in range(0, len(firing), AGAIN_BATCH):
            await self._post(self.receiver.again(firing[start : start + AGAIN_BATCH], time.time()))
        self._again_due = time.monotonic() + self._resend_s
        return False

    async def _send_note(self, waiting: Waiting) -> None:
        note = waiting.note
        try:
            await self._post(self.receiver.message(note, time.time()))
        except Refused as refused:
            times = self._wrong[1] + 1 if self._wrong[0] == note.id else 1
            self._wrong = (note.id, times)
            if not refused.wrong or times < MAX_WRONG:
                raise
            log.error("alert_note_put_aside", receiver=self.receiver.name, note=note.id, rule=note.rule, answer=str(refused))
            self._count("refused")
        else:
            self._count("sent")
        await self._read(self._store.taken, waiting.place)

    async def _post(self, message: Message) -> None:
        try:
            async with self._client.stream("POST", message.url, content=message.body, headers=message.headers) as answer:
                if answer.is_success:
                    return
                text = b""
                async for chunk in answer.aiter_bytes(MAX_ANSWER_BYTES):
                    text = chunk[:MAX_ANSWER_BYTES]
                    break
                detail = f"HTTP {answer.status_code}: {text.decode(errors='replace').strip()}"
                raise Refused(detail, wrong=answer.status_code in WRONG)
        except httpx.HTTPError as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

    async def _back_off(self, why: str) -> None:
        if self.error is None:
            log.warning("alert_receiver_refuses", receiver=self.receiver.name, why=why)
        self.error = why
        self._count("failed")
        wait_s = min(LONGEST_WAIT_S, self._first_wait_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # jitter, no secret

    async def _rest(self) -> None:
        """Until something new, or (Alertmanager) the next resend."""
        wait_s = None if self.receiver.again is None else max(0.0, self._again_due - time.monotonic())
        try:
            async with asyncio.timeout(wait_s):
                await self._woken.wait()
        except TimeoutError:
            return

    def _count(self, outcome: str) -> None:
        self._metrics.add("tidegate_alert_notifications_total", receiver=self.receiver.name, outcome=outcome)
