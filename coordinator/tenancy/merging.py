"""The policy in force for a VM, and the objectives of its client, from all levels. Pure.

    fleet < client < the domain's own metadata < VM over the API          a later level replaces what an earlier one set

Two things the API cannot undo, because the host enforces them (docs/policies.md): an exclusion in the metadata, and its floors and
ceilings, within which a VM's policy over the API may only narrow. Metadata cannot say "normal" apart from saying nothing, so priority
normal there leaves the client's in force. Modes off and observe mean that the VM is left alone: it is excluded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal

import msgspec

from coordinator.sizing.feasible import Objectives
from coordinator.tenancy.book import Book
from coordinator.tenancy.model import BANDS, PolicySpec
from shared.model import Mode, Policy, Priority

Level = Literal["fleet", "client", "domain", "vm"]
LEAST_BUDGET: Final = 1e-5


def policy_of(book: Book, vm_id: str, own: Policy) -> Policy:
    """What is in force for a VM whose domain says `own`."""
    return origins_of(book, vm_id, own)[0]


def origins_of(book: Book, vm_id: str, own: Policy) -> tuple[Policy, Mapping[str, Level]]:
    """The same, and which level each field is from; fields that nobody set are left out."""
    vm = book.vm_policy(vm_id)
    client = own.client if vm is None or vm.client is None else vm.client
    row = book.clients.get(client)
    default = None if row is None else row.spec.priority
    return _merged(book.fleet_policy(), book.client_policy(client), default, own, vm)


def objectives_of(book: Book, configured: Objectives) -> Objectives:
    """The error budgets in force: a client's own, else the smallest of its SLA, else what the configuration says."""
    clients = dict(configured.clients)
    for client, sla in book.slas_by_client():
        clients[client] = max(LEAST_BUDGET, sla.budget)
    for client, row in book.clients.items():
        if row.spec.budget_permille is not None:
            clients[client] = row.spec.budget_permille / 1000.0
    return Objectives(budget=configured.budget, clients=clients, period_s=configured.period_s)


@lru_cache(maxsize=4096)  # the VMs of a client mostly say the same: a change of the fleet's policy merges once for all of them
def _merged(
    fleet: PolicySpec | None, client: PolicySpec | None, default_priority: str | None, own: Policy, vm: PolicySpec | None
) -> tuple[Policy, Mapping[str, Level]]:
    values: dict[str, object] = {}
    origins: dict[str, Level] = {}

    def put(level: Level, fields: Mapping[str, object]) -> None:
        values.update(fields)
        origins.update(dict.fromkeys(fields, level))

    put("fleet", _stated(fleet))
    if default_priority is not None:
        put("client", {"priority": Priority[default_priority.upper()]})
    put("client", _stated(client))
    put("domain", _own(own))
    put("vm", _within(own, _stated(vm)))
    if own.excluded:
        put("domain", {"excluded": True})
    if values.get("mode") in (Mode.OFF, Mode.OBSERVE):
        put(origins["mode"], {"excluded": True})
    return Policy(**values), origins  # type: ignore[arg-type]  # the fields are Policy's own


def _stated(spec: PolicySpec | None) -> dict[str, object]:
    """What a level of the API sets, as fields of Policy."""
    if spec is None:
        return {}
    found = {name: value for name in spec.__struct_fields__ if (value := getattr(spec, name)) is not None}
    if spec.priority is not None:
        found["priority"] = Priority[spec.priority.upper()]
    if (quantile := found.pop("size_quantile", None)) is not None:
        found["size_quantile_permille"] = round(1000 * quantile)
    return found


def _own(own: Policy) -> dict[str, object]:
    """What the domain's metadata says: whatever differs from saying nothing."""
    nothing = Policy()
    return {name: value for name, value in msgspec.structs.asdict(own).items() if value != getattr(nothing, name)}


def _within(own: Policy, stated: dict[str, object]) -> dict[str, object]:
    """A VM's policy over the API, no wider than the host allows."""
    for floor, ceiling in BANDS:
        for name, tighter in ((floor, max), (ceiling, min)):
            bound, asked = getattr(own, name), stated.get(name)
            if bound is not None and asked is not None and tighter(bound, asked) != asked:
                del stated[name]
    return stated
