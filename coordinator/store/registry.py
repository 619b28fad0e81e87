"""Registry port on SQLAlchemy Core: SQLite by default, PostgreSQL by URL; every write is one transaction.

Structs are JSON text, decoded with validation: what the database holds is input like any other. Plans, steps, receipts, outcomes and stays
grow without end, so `prune` bounds them by age and by rows. A database that is away, busy or full is a HostError, and what failed may be
tried again; any other fault of a statement is ours. Invariant: writing the same thing twice leaves one of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import Column, ColumnElement, Connection, Engine, Select, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL

from coordinator.migration_plan import MigrationPlan
from coordinator.model import Receipt
from coordinator.store import tables as t
from coordinator.store.database import open_engine, outages, shown
from coordinator.store.schema import migrate
from coordinator.store.vm_hosts import VmHosts
from coordinator.store.vm_tables import steps as steps_table
from coordinator.store.vm_tables import vm_hosts as vm_hosts_table
from shared.model import Domain, HostCapacity, Mode, Policy
from shared.plan import Outcome, Plan, Step
from shared.units import NS_PER_S

RETENTION_DAYS: Final = 30
MAX_ROWS: Final = 1_000_000  # per table; about 1 GB of receipts

_Condition = Callable[[Any], ColumnElement[bool]]
_DIALECTS: Final = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


FLEET: Final = "*"  # stands for every host in the table of pauses; no host may be called so


class SqlRegistry:
    """`url`: an SQLAlchemy URL (`sqlite:////var/lib/tidegate/registry.sqlite`, `postgresql://tidegate@db/tidegate`).

    Brings the schema up to date first. Raises ConfigError when it cannot be used, HostError when its server cannot be reached now.
    """

    def __init__(self, url: str | URL, *, retention_days: int = RETENTION_DAYS, max_rows: int = MAX_ROWS) -> None:
        for name, value in (("retention_days", retention_days), ("max_rows", max_rows)):
            if not 1 <= value <= 10**9:
                raise ValueError(f"{name} {value}: allowed 1 to 10**9")
        self._retention_days, self._max_rows = retention_days, max_rows
        self.engine: Engine = open_engine(url)
        self._insert: Any = _DIALECTS[self.engine.dialect.name]
        try:
            with outages(self.engine, starting=True):
                migrate(self.engine, shown(self.engine.url))
        except BaseException:
            self.engine.dispose()
            raise
        self._shared = threading.local()
        self.vm_hosts = VmHosts(self)

    def next_epoch(self) -> int:
        """One more than the last; the row is locked by the update, so two starters get two numbers."""
        with self.writing() as connection:
            row = {"name": "epoch", "value": 1}
            insert = self._insert(t.settings).values(row)
            statement = insert.on_conflict_do_update(index_elements=["name"], set_={"value": t.settings.c.value + 1})
            return int(connection.execute(statement.returning(t.settings.c.value)).scalar_one())

    def save_host(self, host_id: str, boot_id: str, capacity: HostCapacity, seen_ns: int) -> None:
        self._upsert(t.hosts, [{"host_id": host_id, "boot_id": boot_id, "capacity": _json(capacity), "seen_ns": seen_ns}])

    def hosts(self) -> list[dict[str, object]]:
        """host_id, boot_id, capacity (HostCapacity), seen_ns of each, by host_id."""
        rows = self._rows(select(t.hosts).order_by(t.hosts.c.host_id))
        return [{**row, "capacity": msgspec.json.decode(row["capacity"], type=HostCapacity)} for row in rows]

    def save_domains(self, host_id: str, domains: Sequence[Domain], seen_ns: int) -> None:
        """The whole inventory of a host: what it no longer names is forgotten, unless another host has it by now."""
        rows = [{"vm_id": d.vm_id, "host_id": host_id, "domain": _json(d), "seen_ns": seen_ns} for d in domains]
        with self.writing() as connection:
            known = {row.vm_id for row in connection.execute(select(t.domains.c.vm_id).where(t.domains.c.host_id == host_id))}
            gone = sorted(known - {domain.vm_id for domain in domains})
            if gone:
                connection.execute(delete(t.domains).where(t.domains.c.vm_id.in_(gone), t.domains.c.host_id == host_id))
            # an older sighting (a replayed inventory) must not take a VM back from the host that has it now
            self._upsert(t.domains, rows, connection, only_if=lambda new: t.domains.c.seen_ns <= new.seen_ns)

    def domains(self) -> dict[str, tuple[str, Domain]]:
        rows = self._rows(select(t.domains).order_by(t.domains.c.vm_id))
        return {row["vm_id"]: (row["host_id"], msgspec.json.decode(row["domain"], type=Domain)) for row in rows}

    def save_acked(self, host_id: str, boot_id: str, sequence: int) -> None:
        """Never goes back."""
        row = {"host_id": host_id, "boot_id": boot_id, "sequence": sequence}
        self._upsert(t.acked, [row], only_if=lambda new: t.acked.c.sequence < new.sequence)

    def acked(self, host_id: str, boot_id: str) -> int:
        where = (t.acked.c.host_id == host_id, t.acked.c.boot_id == boot_id)
        rows = self._rows(select(t.acked.c.sequence).where(*where))
        return int(rows[0]["sequence"]) if rows else -1

    def save_mode(self, host_id: str, mode: Mode) -> None:
        self._upsert(t.modes, [{"host_id": host_id, "mode": mode.value}])

    def modes(self) -> dict[str, Mode]:
        return {row["host_id"]: Mode(row["mode"]) for row in self._rows(select(t.modes))}

    def save_pause(self, host_id: str | None, paused: bool) -> None:
        """The kill switch of one host, or (None) of the fleet."""
        self._upsert(t.pauses, [{"host_id": host_id or FLEET, "paused": int(paused)}])

    def pauses(self) -> set[str | None]:
        """Hosts whose kill switch is on; None among them = the fleet's."""
        return {None if row["host_id"] == FLEET else row["host_id"] for row in self._rows(select(t.pauses).where(t.pauses.c.paused == 1))}

    def save_policy(self, vm_id: str, policy: Policy) -> None:
        self._upsert(t.policies, [{"vm_id": vm_id, "policy": _json(policy)}])

    def policies(self) -> dict[str, Policy]:
        return {row["vm_id"]: msgspec.json.decode(row["policy"], type=Policy) for row in self._rows(select(t.policies))}

    def save_plan(self, plan: Plan) -> None:
        row = {"host_id": plan.host_id, "epoch": plan.epoch, "sequence": plan.sequence, "issued_ns": plan.issued_ns}
        steps = [{**row, "step_id": step.id, "vm_id": step.vm_id, "step": _json(step)} for step in plan.steps]
        with self.writing() as connection:
            self._upsert(t.plans, [{**row, "plan": _json(plan)}], connection)
            self._upsert(steps_table, steps, connection)

    def plans(self, limit: int, host_id: str | None = None) -> list[Plan]:
        """Newest first."""
        query = select(t.plans.c.plan).order_by(t.plans.c.epoch.desc(), t.plans.c.sequence.desc())
        rows = self._rows(_narrowed(query, t.plans.c.host_id, host_id).limit(_limit(limit)))
        return [msgspec.json.decode(row["plan"], type=Plan) for row in rows]

    def steps(self, limit: int, vm_id: str | None = None) -> list[tuple[str, int, Step]]:
        """(host_id, issued_ns of its plan, step), newest first."""
        query = select(steps_table).order_by(steps_table.c.issued_ns.desc(), steps_table.c.step_id.desc())
        rows = self._rows(_narrowed(query, steps_table.c.vm_id, vm_id).limit(_limit(limit)))
        return [(row["host_id"], row["issued_ns"], msgspec.json.decode(row["step"], type=Step)) for row in rows]

    def save_receipts(self, receipts: Sequence[Receipt]) -> None:
        rows = [{"id": r.id, "vm_id": r.vm_id, "issued_s": r.issued_s, "receipt": _json(r)} for r in receipts]
        self._upsert(t.receipts, rows)

    def receipts(self, limit: int, vm_id: str | Sequence[str] | None = None) -> list[Receipt]:
        """Newest first."""
        query = select(t.receipts.c.receipt).order_by(t.receipts.c.issued_s.desc(), t.receipts.c.id)
        rows = self._rows(_narrowed(query, t.receipts.c.vm_id, vm_id).limit(_limit(limit)))
        return [msgspec.json.decode(row["receipt"], type=Receipt) for row in rows]

    def receipt(self, receipt_id: str) -> Receipt | None:
        """None = unknown or pruned."""
        rows = self._rows(select(t.receipts.c.receipt).where(t.receipts.c.id == receipt_id))
        return msgspec.json.decode(rows[0]["receipt"], type=Receipt) if rows else None

    def save_outcomes(self, host_id: str, outcomes: Sequence[Outcome]) -> None:
        rows = [
            {
                "host_id": host_id,
                "step_id": outcome.step.id,
                "state": outcome.state.value,
                "vm_id": outcome.step.vm_id,
                "finished_ns": outcome.finished_ns,
                "outcome": _json(outcome),
            }
            for outcome in outcomes
        ]
        if rows:
            with self.writing() as connection:
                statement = self._insert(t.outcomes).on_conflict_do_nothing(index_elements=["host_id", "step_id", "state"])
                connection.execute(statement, rows)

    def outcomes(self, limit: int, vm_id: str | Sequence[str] | None = None) -> list[tuple[str, Outcome]]:
        """(host_id, outcome), newest first by arrival."""
        query = select(t.outcomes.c.host_id, t.outcomes.c.outcome).order_by(t.outcomes.c.id.desc())
        rows = self._rows(_narrowed(query, t.outcomes.c.vm_id, vm_id).limit(_limit(limit)))
        return [(row["host_id"], msgspec.json.decode(row["outcome"], type=Outcome)) for row in rows]

    def save_migration(self, plan: MigrationPlan) -> None:
        self._upsert(t.migrations, [{"id": plan.id, "created_ns": plan.created_ns, "plan": _json(plan)}])

    def migrations(self, limit: int) -> list[MigrationPlan]:
        """Newest first."""
        rows = self._rows(
            select(t.migrations.c.plan).order_by(t.migrations.c.created_ns.desc(), t.migrations.c.id.desc()).limit(_limit(limit))
        )
        return [msgspec.json.decode(row["plan"], type=MigrationPlan) for row in rows]

    def save_document(self, name: str, text: str) -> None:
        self._upsert(t.documents, [{"name": name, "text": text}])

    def documents(self) -> dict[str, str]:
        return {row["name"]: row["text"] for row in self._rows(select(t.documents))}

    def save_token(self, token_hash: str, name: str, created_ns: int) -> None:
        self._upsert(t.tokens, [{"token_hash": token_hash, "name": name, "created_ns": created_ns}])

    def token_names(self) -> dict[str, str]:
        return {row["token_hash"]: row["name"] for row in self._rows(select(t.tokens))}

    def prune(self, now_ns: int) -> int:
        """Delete plans, steps, receipts, outcomes, migrations, ended stays past retention or beyond the newest `max_rows`; how many."""
        oldest_ns = now_ns - self._retention_days * 86_400 * NS_PER_S
        gone = 0
        with self.writing() as connection:
            for table, age, oldest in (
                (t.plans, t.plans.c.issued_ns, oldest_ns),
                (t.receipts, t.receipts.c.issued_s, oldest_ns // NS_PER_S),
                (t.outcomes, t.outcomes.c.finished_ns, oldest_ns),
                (t.migrations, t.migrations.c.created_ns, oldest_ns),
                (steps_table, steps_table.c.issued_ns, oldest_ns),
                (vm_hosts_table, vm_hosts_table.c.until_ns, oldest_ns),
            ):
                newest = select(age).where(age.is_not(None)).order_by(age.desc())
                edge = connection.execute(newest.offset(self._max_rows - 1).limit(1)).scalar()
                gone += connection.execute(delete(table).where(age < (oldest if edge is None else max(oldest, edge)))).rowcount
        return gone

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, or the one that this thread is in; for the stores of other tables too. HostError as everywhere here."""
        shared: Connection | None = getattr(self._shared, "connection", None)
        if shared is not None:
            yield shared
            return
        with outages(self.engine), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread writes within is one transaction: all of it lasts or none."""
        with outages(self.engine), self.engine.begin() as connection:
            self._shared.connection = connection
            try:
                yield
            finally:
                self._shared.connection = None

    def close(self) -> None:
        self.engine.dispose()

    def _rows(self, query: Select[Any]) -> list[dict[str, Any]]:
        with outages(self.engine), self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _upsert(
        self, table: Table, rows: Sequence[Mapping[str, object]], connection: Connection | None = None, only_if: _Condition | None = None
    ) -> None:
        """Insert, or overwrite what has the same primary key (where `only_if(new row)` holds)."""
        if not rows:
            return
        insert = self._insert(table)
        keys = [column.name for column in table.primary_key]
        changed = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
        where = None if only_if is None else only_if(insert.excluded)
        statement = insert.on_conflict_do_update(index_elements=keys, set_=changed, where=where)
        with nullcontext(connection) if connection is not None else self.writing() as transaction:
            transaction.execute(statement, list(rows))


def _narrowed(query: Select[Any], column: Column[Any], value: str | Sequence[str] | None) -> Select[Any]:
    """`value`: the one, or any of several."""
    if value is None:
        return query
    return query.where(column == value if isinstance(value, str) else column.in_(value))


def _limit(limit: int) -> int:
    if not 1 <= limit <= 100_000:
        raise ValueError(f"limit {limit}: allowed 1 to 100000")
    return limit


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: object) -> object:
    """NumPy values in a receipt's inputs; NaN becomes null on the way."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    # what msgspec asks of an enc_hook for a type that it does not know
    raise NotImplementedError(f"{type(value).__name__} cannot be stored as JSON")
