"""What stands between a request and its handler, as one object: who asks and how often, the audit, kept answers, the live updates.

`run` performs a store's work in order behind the writes before it, in the coordinator's one writing thread; so an audit row is never on
disk before what it tells of. Audit entries that wait are written together, by whoever gets the thread first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

import structlog
from litestar.connection import ASGIConnection
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool

from coordinator.service.auth import TokenVerifier
from coordinator.service.callers import NOBODY, Caller
from coordinator.service.rates import Rate
from coordinator.service.streaming import Hub
from coordinator.store.answers import Answers
from coordinator.store.audit_chain import AuditEntry
from coordinator.store.audit_log import AuditLog
from coordinator.store.tables import metadata
from coordinator.store.tokens import TokenStore
from shared.config_access import AccessConfig
from shared.errors import HostError, Refusal
from shared.metrics import Metrics
from shared.refusal import RefusalCode
from shared.roles import Role

MAX_WAITING: Final = 1000  # audit entries; with 256 connections only a disk that fails makes so many
MAX_ROWS: Final = 2_000_000  # of the audit, some 600 bytes each; the oldest go, and a row says so
PRUNE_EVERY: Final = 10_000
PEER_KEY: Final = "peer_name"  # where app.py leaves the common name of the client certificate
ABORT_KEY: Final = "abort"  # and how to break the connection
NOTE_EVERY_S: Final = 60.0  # of refusals by rate one row a caller and minute is written: more would let a flood fill the disk
MAX_NOTED: Final = 10_000

T = TypeVar("T")
Connection = ASGIConnection[Any, Any, Any, Any]
_log = structlog.get_logger(__name__)


class Run(Protocol):
    """A store's work, in order behind the others. Awaits its result."""

    def __call__(self, function: Callable[..., T], *arguments: object) -> Awaitable[T]: ...


class TooOften(Refusal):
    """RATE_LIMITED by the door; `retry_after_s` until the next request may pass."""

    status = 429

    def __init__(self, what: str, per_s: float, wait_s: float) -> None:
        self.retry_after_s = max(1, int(wait_s + 0.999))
        super().__init__(RefusalCode.RATE_LIMITED, f"more than {per_s:.0f} {what} a second of one caller")


class Safeguards:
    """For one event loop. `process` tells this start of the coordinator from those before."""

    def __init__(
        self,
        tokens: TokenVerifier,
        engine: Engine,
        run: Run,
        hub: Hub,
        config: AccessConfig = AccessConfig(),  # noqa: B008  # frozen
        *,
        metrics: Metrics | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.tokens = tokens
        self.store = TokenStore(engine)
        self.log = AuditLog(engine)
        self.answers = Answers(engine, uuid4().hex)
        self.run = run
        self._metrics = metrics
        self.hub = hub
        self.wall_ns = wall_ns
        self._monotonic = monotonic
        self._subjects = config.by_subject()
        self._requests = Rate(config.requests_per_s)
        self._writes = Rate(config.writes_per_s)
        self._failures = Rate(config.failures_per_s)
        self._waiting: deque[AuditEntry] = deque()
        self._draining = threading.Lock()
        self._since_prune = PRUNE_EVERY  # a first look at the first row
        self._noted: dict[str, float] = {}

    async def identify(self, connection: Connection, open_reads: bool) -> Caller:
        """Whoever shows a token or a known certificate, else an address. Refusal(UNAUTHORIZED): the token is none of ours."""
        address = connection.client.host if connection.client is not None else ""
        header = connection.headers.get("authorization", "")
        if header.lower().startswith("bearer"):  # another scheme is a proxy's own business
            grant = await self.tokens.recognise(header)
            if grant is None:
                if wait_s := self._failures.wait_s(address, self._monotonic()):
                    raise TooOften("wrong tokens", self._failures.per_s, wait_s)
                raise Refusal(RefusalCode.UNAUTHORIZED, "the token in the header Authorization is unknown, expired or revoked")
            await self._note_use()
            return Caller(name=grant.name, role=grant.role, how=f"token:{grant.id}", client=grant.client)
        peer = connection.scope.get("state", {}).get(PEER_KEY)
        if peer in self._subjects:
            role, client = self._subjects[peer]
            return Caller(name=peer, role=role, how=f"certificate:{peer}", client=client)
        return Caller(name="", role=Role.VIEWER if open_reads else None, how=f"address:{address}")

    def admit(self, caller: Caller, writes: bool) -> None:
        """Raises TooOften."""
        for rate, what, counts in ((self._requests, "requests", True), (self._writes, "writes", writes)):
            if counts and (wait_s := rate.wait_s(caller.how, self._monotonic())):
                raise TooOften(what, rate.per_s, wait_s)

    def worth_a_row(self, caller: Caller, result: str) -> bool:
        """Whether a write that ended so gets a row of its own: all do, but those refused for their rate once a minute."""
        if result != RefusalCode.RATE_LIMITED:
            return True
        now_s = self._monotonic()
        if now_s - self._noted.get(caller.how, -NOTE_EVERY_S) < NOTE_EVERY_S:
            return False
        if len(self._noted) >= MAX_NOTED:
            self._noted.clear()
        self._noted[caller.how] = now_s
        return True

    def count(self, name: str, **labels: str) -> None:
        """One more, where there are metrics."""
        if self._metrics is not None:
            self._metrics.add(name, **labels)

    async def note(self, entry: AuditEntry, settle: Callable[[], None] | None = None) -> None:
        """Durable when it returns; `settle` is done with it. Raises HostError."""
        if len(self._waiting) >= MAX_WAITING:
            raise HostError(f"audit: {MAX_WAITING} entries wait for the disk")
        self._waiting.append(entry)
        await self.run(self._drain, settle)
        self.count("tidegate_audit_rows_total", result=entry.result)

    def _drain(self, settle: Callable[[], None] | None) -> None:
        """In a thread. What cannot be written waits on: the next one tries again."""
        with self._draining:
            entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                self.log.append(entries)
            except HostError:
                self._waiting.extendleft(reversed(entries))
                raise
            self._since_prune += len(entries)
            if self._since_prune >= PRUNE_EVERY:
                self._since_prune = 0
                self.log.prune(MAX_ROWS, self.wall_ns())
        if settle is not None:
            settle()

    async def _note_use(self) -> None:
        used = self.tokens.take_used()
        if not used:
            return
        try:
            await self.run(self.store.touch, used)
        except HostError as error:
            _log.warning("last use of tokens not noted", reason=str(error))


def in_memory(tokens: TokenVerifier, config: AccessConfig = AccessConfig()) -> Safeguards:  # noqa: B008  # frozen
    """Safeguards over a database of their own in memory: for an application without a coordinator. Nothing of it lasts."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    metadata.create_all(engine)

    async def run(function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments)

    return Safeguards(tokens, engine, run, Hub(1, streams=config.streams, per_caller=config.streams_per_caller), config)


def caller_of(state: dict[str, object]) -> Caller:
    """The caller that the edge found; NOBODY where the request did not come so far."""
    found = state.get("caller")
    return found if isinstance(found, Caller) else NOBODY
