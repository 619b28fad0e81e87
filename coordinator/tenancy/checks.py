"""What a spec must agree with: the references that it makes, the bounds of its kind, and who still uses what is to be removed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

from coordinator.tenancy.book import Book
from coordinator.tenancy.model import (
    BOUNDS,
    FLEET_POLICY,
    ApplicationSpec,
    ClientSpec,
    EventSpec,
    Kind,
    PolicySpec,
    Spec,
)
from shared.errors import Refusal
from shared.refusal import RefusalCode

NAMED_USERS: Final = 20  # a refusal names so many


class Member(NamedTuple):
    """Whose a VM is now."""

    client: str
    application: str


class Unfit(Refusal):
    """INVALID_VALUE of a field, with its value and what is allowed; `status` for HTTP."""

    def __init__(self, field: str, value: object, allowed: str, status: int = 400) -> None:
        self.field, self.value, self.allowed, self.status = field, str(value)[:64], allowed, status
        super().__init__(RefusalCode.INVALID_VALUE, f"{field}: {self.value} is not allowed; allowed: {allowed}")


def check(book: Book, kind: Kind, id_: str, spec: Spec, members: Mapping[str, Member]) -> None:
    """Raises Unfit where the spec names what there is not, or does not fit beside the others."""
    if id_ not in book.of(kind) and len(book.of(kind)) >= BOUNDS[kind]:
        raise Unfit("id", id_, f"at most {BOUNDS[kind]} of this kind; remove one first", status=409)
    match spec:
        case ClientSpec():
            if spec.sla is not None and spec.sla not in book.slas:
                raise Unfit("sla", spec.sla, "the id of an SLA of /api/v1/slas, or null")
        case ApplicationSpec():
            _known_client(book, spec.client)
            label = spec.label or id_
            for other in book.applications.values():
                if other.id != id_ and (other.spec.client, other.spec.label or other.id) == (spec.client, label):
                    raise Unfit("label", label, f"a label that no other application of client {spec.client} has; {other.id} has it", 409)
        case PolicySpec():
            _check_policy(book, id_, spec, members)
        case EventSpec():
            if spec.client is not None and spec.client not in {member.client for member in members.values()}:
                _known_client(book, spec.client)
            unknown = [vm_id for vm_id in spec.vm_ids if vm_id not in members]
            if unknown:
                raise Unfit("vm_ids", unknown[0], "ids of /api/v1/vms")


def users(book: Book, kind: Kind, id_: str, members: Mapping[str, Member]) -> list[str]:
    """What still names this, in words, at most NAMED_USERS; empty = it may go."""
    found: Iterator[str]
    if kind is Kind.SLA:
        found = (f"client {row.id}" for row in book.clients.values() if row.spec.sla == id_)
    elif kind is Kind.CLIENT:
        found = _users_of_client(book, id_, members)
    elif kind is Kind.APPLICATION:
        spec = book.applications[id_].spec
        found = _users_of_application(book, Member(spec.client, spec.label or id_), members)
    else:
        return []
    return list(islice(found, NAMED_USERS))


def _users_of_client(book: Book, client: str, members: Mapping[str, Member]) -> Iterator[str]:
    yield from (f"application {row.id}" for row in book.applications.values() if row.spec.client == client)
    yield from (f"policy {row.id}" for row in book.policies.values() if row.id == f"client/{client}" or row.spec.client == client)
    yield from (f"event {row.id}" for row in book.events.values() if row.spec.client == client)
    yield from (f"VM {vm_id}" for vm_id, member in members.items() if member.client == client)


def _users_of_application(book: Book, application: Member, members: Mapping[str, Member]) -> Iterator[str]:
    named = application.application
    yield from (f"event {row.id}" for row in book.events.values() if (row.spec.client, row.spec.application) == (application.client, named))
    yield from (f"VM {vm_id}" for vm_id, member in members.items() if member == application)


def _check_policy(book: Book, id_: str, spec: PolicySpec, members: Mapping[str, Member]) -> None:
    level, _, of = id_.partition("/")
    if level == "vm":
        if of not in members:
            raise Unfit("vm_id", of, "an id of /api/v1/vms", status=404)
        if spec.client is not None:
            _known_client(book, spec.client)
        return
    for field in ("client", "application"):
        if getattr(spec, field) is not None:
            raise Unfit(field, getattr(spec, field), "null: only the policy of a VM says whose it is")
    if id_ != FLEET_POLICY and of not in book.clients:
        raise Unfit("client_id", of, "the id of a client of /api/v1/clients", status=404)


def _known_client(book: Book, client: str) -> None:
    if client not in book.clients:
        raise Unfit("client", client, "the id of a client of /api/v1/clients")
