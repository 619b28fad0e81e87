"""The gateway's core: connections, identity, de-duplication and acknowledgement, as one pure machine.

`handle(event, now_ns)` returns instructions; the driver (server.py, or the simulation) carries them out in order. A stream is
one (host, boot): its frames are numbered by the agent. Invariants:
- a connection speaks only for the host in its certificate;
- a frame is delivered and logged at most once, and acknowledged only after `Durable` said that it is on disk;
- whatever a peer sends, only that peer's connection can close.
`now_ns` is wall time; nothing here reads a clock, a socket or a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.gateway.events import (
    AppendWal,
    Close,
    Connected,
    Deliver,
    Disconnected,
    Durable,
    Event,
    HostDown,
    HostUp,
    Instruction,
    ModeOrdered,
    PauseOrdered,
    PlanReady,
    PlanUnsent,
    PoliciesOrdered,
    Received,
    Reply,
    StoreFull,
    Tick,
)
from coordinator.gateway.offsets import ClockOffsets
from coordinator.gateway.plausibility import admitted
from shared.errors import PeerError
from shared.frame import decode_agent, decode_block, encode
from shared.messages import (
    Ack,
    CoordinatorMessage,
    Goodbye,
    Hello,
    Outcomes,
    Samples,
    SendPlan,
    SetMode,
    SetPause,
    SetPolicies,
    Status,
    Welcome,
)
from shared.model import HostSample, Mode
from shared.plan import Plan
from shared.session import Session, SessionState, Side
from shared.units import NS_PER_S

MAX_AHEAD_NS: Final = 3600 * NS_PER_S  # a clock further ahead than this would file samples under buckets that are still to come
MAX_BOOTS_PER_HOST: Final = 16  # streams remembered per host; an agent's spool spans a reboot or two
STORE_FULL_RETRY_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """`epoch` goes into every Welcome; a host silent for longer than `stale_host_s` is reported down."""

    epoch: int
    stale_host_s: float = 60.0
    max_skew_s: float | None = None  # a host whose clock is further off, either way, is sent away; None = only one that is far ahead


COUNTERS: Final = (
    "frames",
    "duplicates",  # frames seen before: acknowledged again, not delivered
    "gaps",  # sequences that an agent skipped: its spool was full and dropped them
    "future",  # hellos and frames from a clock too far ahead
    "behind",  # hellos from a clock too far behind
    "garbage",
    "impostors",
    "replaced",
    "sent_away",
    "plans_sent",
    "plans_replaced",  # never sent, a newer one came first
    "plans_expired",  # never sent, the host was away too long
)


@dataclass
class _Connection:
    cert_host_id: str
    session: Session = field(default_factory=lambda: Session(Side.COORDINATOR))
    hello: Hello | None = None


@dataclass
class _Stream:
    """seen: highest accepted or discarded; logged: highest given to the log; durable: highest known on disk. -1 = none."""

    seen: int = -1
    logged: int = -1
    durable: int = -1

    def acknowledged(self) -> int:
        return self.seen if self.durable >= self.logged else self.durable


@dataclass
class _Host:
    conn_id: int | None = None
    last_message_ns: int = 0
    up: bool = False
    mode: Mode | None = None
    plan: Plan | None = None
    plan_sent_on: int | None = None  # connection that carried `plan`; None = not sent yet
    streams: dict[str, _Stream] = field(default_factory=dict)  # by boot id, least recently used first


class GatewayCore:
    """See the module. `acked`: highest logged sequence by (host, boot) at start; `modes`: orders that are in force."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        acked: Mapping[tuple[str, str], int] | None = None,
        modes: Mapping[str, Mode] | None = None,
        paused: Collection[str | None] = (),
    ) -> None:
        self.settings = settings
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.implausible: Counter[str] = Counter()  # readings that cannot be, by column
        self.offsets = ClockOffsets()
        self._connections: dict[int, _Connection] = {}
        self._hosts: dict[str, _Host] = {}
        self._store_full = ""  # why
        self._paused: set[str | None] = set(paused)
        self._ticked_ns: int | None = None
        for (host_id, boot_id), sequence in (acked or {}).items():
            self._host(host_id).streams[boot_id] = _Stream(sequence, sequence, sequence)
        for host_id, mode in (modes or {}).items():
            self._host(host_id).mode = mode

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Advance on one event. Never raises for what a peer did."""
        match event:
            case Received():
                return self._received(event, now_ns)
            case Durable():
                return self._durable(event)
            case Connected():
                self._connections[event.conn_id] = _Connection(event.cert_host_id)
                return []
            case Disconnected():
                self._forget(event.conn_id)
                return []
            case Tick():
                return self._tick(now_ns)
            case PlanReady():
                return self._plan_ready(event.plan, now_ns)
            case ModeOrdered():
                return self._mode_ordered(event)
            case PauseOrdered():
                return self._pause_ordered(event)
            case PoliciesOrdered():
                return self._policies_ordered(event)
            case StoreFull():
                self._store_full = event.reason if event.full else ""
                return []

    def connected(self) -> dict[str, Hello]:
        """Hosts with an open session, and what each said in its Hello."""
        hellos = ((host_id, self._hello_of(host)) for host_id, host in self._hosts.items())
        return {host_id: hello for host_id, hello in hellos if hello is not None}

    def ordered(self, host_id: str) -> Mode | None:
        """The API's order for a host; None = there is none."""
        host = self._hosts.get(host_id)
        return None if host is None else host.mode

    def paused(self, host_id: str) -> bool:
        """The kill switch is on, for this host or for the fleet."""
        return None in self._paused or host_id in self._paused

    def silent(self) -> list[str]:
        """Hosts that were here and are reported down."""
        return [host_id for host_id, host in self._hosts.items() if not host.up and host.last_message_ns]

    def _received(self, event: Received, now_ns: int) -> list[Instruction]:
        connection = self._connections.get(event.conn_id)
        if connection is None or connection.session.state is SessionState.CLOSED:
            return []  # what was still in the pipe when we closed
        self.counters["frames"] += 1
        try:
            message = decode_agent(event.frame)
            connection.session.received(message)
            samples = self._samples(connection, message) if isinstance(message, Samples) else ()
        except PeerError as error:
            self.counters["garbage"] += 1
            return self._send_away(event.conn_id, str(error), 60.0)
        if isinstance(message, Hello):
            return self._hello(event.conn_id, connection, message, now_ns)
        host_id = connection.cert_host_id
        out = self._heard(host_id, now_ns)
        if isinstance(message, Samples | Outcomes):
            return out + self._spooled(event, host_id, message, samples, now_ns)
        out.append(Deliver(host_id, message))
        if isinstance(message, Status):
            self.offsets.note(host_id, message.wall_ns, now_ns)
            out += self._resend_plan(self._host(host_id), message, now_ns)
        return out

    def _samples(self, connection: _Connection, message: Samples) -> tuple[HostSample, ...]:
        hello = connection.hello
        return decode_block(message.block, admitted(None if hello is None else hello.capacity.cpu_millicores, self.implausible))

    def _hello(self, conn_id: int, connection: _Connection, hello: Hello, now_ns: int) -> list[Instruction]:
        if hello.host_id != connection.cert_host_id:
            self.counters["impostors"] += 1
            return self._send_away(conn_id, f"certificate is for host {connection.cert_host_id}, hello is from {hello.host_id}", 60.0)
        if reason := self._skewed(hello.wall_ns - now_ns):
            self.counters["future" if hello.wall_ns > now_ns else "behind"] += 1
            return self._send_away(conn_id, reason, 60.0)
        self.offsets.restart(hello.host_id)
        self.offsets.note(hello.host_id, hello.wall_ns, now_ns)
        host = self._host(hello.host_id)
        out: list[Instruction] = []
        if host.conn_id is not None and host.conn_id != conn_id:
            self.counters["replaced"] += 1
            out += self._send_away(host.conn_id, "replaced by a newer connection of this host", 5.0)
        host.conn_id, connection.hello = conn_id, hello
        acked = self._stream(host, hello.boot_id).acknowledged()
        paused = self.paused(hello.host_id)
        welcome = Welcome(epoch=self.settings.epoch, wall_ns=now_ns, acked=acked, mode=host.mode, paused=paused)
        out.append(self._reply(conn_id, welcome))
        out += self._heard(hello.host_id, now_ns)
        out.append(Deliver(hello.host_id, hello))
        if host.plan_sent_on is None:
            out += self._send_plan(host, now_ns)
        return out

    def _skewed(self, ahead_ns: int) -> str:
        """Why a host with this clock may not come in; "" = it may."""
        skew = self.settings.max_skew_s
        allowed_ns = MAX_AHEAD_NS if skew is None else int(skew * NS_PER_S)
        if ahead_ns <= allowed_ns and (skew is None or -ahead_ns <= allowed_ns):
            return ""
        side = "ahead of" if ahead_ns > 0 else "behind"
        return f"clock skew: host clock is {abs(ahead_ns) // NS_PER_S} s {side} ours: allowed {allowed_ns // NS_PER_S} s"

    def _spooled(
        self, event: Received, host_id: str, message: Samples | Outcomes, samples: tuple[HostSample, ...], now_ns: int
    ) -> list[Instruction]:
        stream = self._stream(self._host(host_id), message.boot_id)
        if message.sequence <= stream.seen:
            self.counters["duplicates"] += 1
            return self._ack(event.conn_id, message.boot_id, stream)
        if self._store_full:
            return self._send_away(event.conn_id, self._store_full, STORE_FULL_RETRY_S)
        if stream.seen >= 0 and message.sequence > stream.seen + 1:
            self.counters["gaps"] += message.sequence - stream.seen - 1
        stream.seen = message.sequence
        if any(sample.wall_ns - now_ns > MAX_AHEAD_NS for sample in samples):
            # Refused for good, so acknowledged: kept back, it would block the agent's spool until that future comes.
            self.counters["future"] += 1
            return self._ack(event.conn_id, message.boot_id, stream)
        stream.logged = message.sequence
        return [AppendWal(host_id, message.boot_id, message.sequence, event.frame), Deliver(host_id, message, samples)]

    def _durable(self, event: Durable) -> list[Instruction]:
        out: list[Instruction] = []
        for (host_id, boot_id), sequence in event.upto.items():
            host = self._host(host_id)
            stream = host.streams.get(boot_id)
            if stream is None:
                continue  # evicted meanwhile: the agent will send again and be told then
            stream.durable = max(stream.durable, sequence)
            if host.conn_id is not None:
                out += self._ack(host.conn_id, boot_id, stream)
        return out

    def _tick(self, now_ns: int) -> list[Instruction]:
        out: list[Instruction] = []
        limit_ns = int(self.settings.stale_host_s * NS_PER_S)
        self._listened(now_ns, limit_ns)
        for host_id, host in self._hosts.items():
            if host.up and now_ns - host.last_message_ns > limit_ns:
                host.up = False
                out.append(HostDown(host_id, "silent"))
            if host.plan is not None and host.plan.deadline_ns < now_ns:
                if host.plan_sent_on is None:
                    self.counters["plans_expired"] += 1
                    out.append(PlanUnsent(host.plan))
                host.plan = None
        return out

    def _listened(self, now_ns: int, limit_ns: int) -> None:
        """Who was not heard while this process itself stood still was not silent: that time does not count."""
        gap_ns = 0 if self._ticked_ns is None else now_ns - self._ticked_ns
        self._ticked_ns = now_ns
        if gap_ns > limit_ns // 2:
            for host in self._hosts.values():
                host.last_message_ns += gap_ns if host.up else 0

    def _plan_ready(self, plan: Plan, now_ns: int) -> list[Instruction]:
        host = self._host(plan.host_id)
        unsent: list[Instruction] = []
        if host.plan is not None and host.plan_sent_on is None:
            self.counters["plans_replaced"] += 1
            unsent.append(PlanUnsent(host.plan))
        host.plan, host.plan_sent_on = plan, None
        return unsent + self._send_plan(host, now_ns)

    def _resend_plan(self, host: _Host, status: Status, now_ns: int) -> list[Instruction]:
        """A plan that an earlier connection took with it when it broke."""
        plan = host.plan
        if plan is None or host.plan_sent_on == host.conn_id:
            return []
        return self._send_plan(host, now_ns) if (status.plan_epoch, status.plan_sequence) < (plan.epoch, plan.sequence) else []

    def _send_plan(self, host: _Host, now_ns: int) -> list[Instruction]:
        if host.plan is None or host.conn_id is None or host.plan.deadline_ns < now_ns:
            return []
        self.counters["plans_sent"] += 1
        host.plan_sent_on = host.conn_id
        return [self._reply(host.conn_id, SendPlan(plan=host.plan))]

    def _mode_ordered(self, event: ModeOrdered) -> list[Instruction]:
        host = self._host(event.host_id)
        host.mode = event.mode
        return [] if host.conn_id is None else [self._reply(host.conn_id, SetMode(mode=event.mode))]

    def _pause_ordered(self, event: PauseOrdered) -> list[Instruction]:
        (self._paused.add if event.paused else self._paused.discard)(event.host_id)
        concerned = [event.host_id] if event.host_id is not None else list(self._hosts)
        conns = [(host_id, host.conn_id) for host_id in concerned if (host := self._host(host_id)).conn_id is not None]
        return [self._reply(conn_id, SetPause(paused=self.paused(host_id))) for host_id, conn_id in conns if conn_id is not None]

    def _policies_ordered(self, event: PoliciesOrdered) -> list[Instruction]:
        host = self._host(event.host_id)
        hello = self._hello_of(host)
        if host.conn_id is None or hello is None or not hello.takes_policies:
            return []
        return [self._reply(host.conn_id, SetPolicies(policies=dict(event.policies)))]

    def _heard(self, host_id: str, now_ns: int) -> list[Instruction]:
        host = self._host(host_id)
        host.last_message_ns = now_ns
        was_up, host.up = host.up, True
        return [] if was_up else [HostUp(host_id)]

    def _ack(self, conn_id: int, boot_id: str, stream: _Stream) -> list[Instruction]:
        acknowledged = stream.acknowledged()
        return [self._reply(conn_id, Ack(boot_id=boot_id, sequence=acknowledged))] if acknowledged >= 0 else []

    def _reply(self, conn_id: int, message: CoordinatorMessage) -> Reply:
        self._connections[conn_id].session.sending(message)
        return Reply(conn_id, encode(message))

    def _send_away(self, conn_id: int, reason: str, retry_after_s: float) -> list[Instruction]:
        self.counters["sent_away"] += 1
        connection = self._connections[conn_id]
        goodbye = Goodbye(reason=reason[:256], retry_after_s=retry_after_s)
        connection.session.close()
        self._release(conn_id, connection)
        return [Reply(conn_id, encode(goodbye)), Close(conn_id, reason)]

    def _forget(self, conn_id: int) -> None:
        connection = self._connections.pop(conn_id, None)
        if connection is not None:
            self._release(conn_id, connection)

    def _release(self, conn_id: int, connection: _Connection) -> None:
        """Only the connection that holds the host may let go of it: a replaced one leaves later."""
        host = self._hosts.get(connection.cert_host_id)
        if host is not None and host.conn_id == conn_id:
            host.conn_id = None

    def _hello_of(self, host: _Host) -> Hello | None:
        return None if host.conn_id is None else self._connections[host.conn_id].hello

    def _host(self, host_id: str) -> _Host:
        return self._hosts.setdefault(host_id, _Host())

    @staticmethod
    def _stream(host: _Host, boot_id: str) -> _Stream:
        stream = host.streams.pop(boot_id, None) or _Stream()
        host.streams[boot_id] = stream
        if len(host.streams) > MAX_BOOTS_PER_HOST:
            del host.streams[next(iter(host.streams))]
        return stream
