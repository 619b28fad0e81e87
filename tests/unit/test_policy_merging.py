"""Policies of all levels as one: who wins field by field, what the host's own metadata keep, and the error budgets of clients."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.learning.objectives import Objective
from coordinator.sizing.feasible import Objectives
from coordinator.tenancy.book import Book
from coordinator.tenancy.merging import objectives_of, origins_of, policy_of
from coordinator.tenancy.model import ClientSpec, Kind, PolicySpec, Row, SlaSpec, Spec
from shared.model import Mode, Policy, Priority


def row(id_: str, spec: Spec) -> Row[Spec]:
    return Row(id=id_, spec=spec, version=1, created_ns=0, changed_ns=0, changed_by="ops")


def book(clients: dict[str, ClientSpec] | None = None, **policies: PolicySpec) -> Book:
    """Policies by level: fleet=, client_ID=, vm_ID=."""
    rows = [row(level.replace("_", "/", 1), spec) for level, spec in policies.items()]
    return Book().with_rows(Kind.CLIENT, [row(id_, spec) for id_, spec in (clients or {}).items()]).with_rows(Kind.POLICY, rows)


def test_a_later_level_wins_field_by_field() -> None:
    levels = book(
        {"a": ClientSpec(name="A", priority="high")},
        fleet=PolicySpec(priority="low", cpu_floor_millicores=100, net_floor_bits_per_s=7, size_quantile=0.9),
        client_a=PolicySpec(cpu_floor_millicores=200, size_quantile=0.95),
        vm_v=PolicySpec(cpu_floor_millicores=500),
    )
    own = Policy(client="a", memory_floor_bytes=9)
    merged, origins = origins_of(levels, "v", own)
    assert merged == Policy(
        client="a",
        priority=Priority.HIGH,
        cpu_floor_millicores=500,
        net_floor_bits_per_s=7,
        memory_floor_bytes=9,
        size_quantile_permille=950,
    )
    assert origins["cpu_floor_millicores"], origins["size_quantile_permille"] == ("vm", "client")
    assert policy_of(levels, "w", own).cpu_floor_millicores == 200
    assert policy_of(levels, "w", Policy()).priority is Priority.LOW


def test_what_the_host_enforces_stays() -> None:
    own = Policy(cpu_floor_millicores=400, cpu_ceiling_millicores=2000, excluded=True)
    wide = book(vm_v=PolicySpec(cpu_floor_millicores=100, cpu_ceiling_millicores=8000, excluded=False))
    assert policy_of(wide, "v", own) == own, "no wider than the metadata"
    narrow = book(vm_v=PolicySpec(cpu_floor_millicores=500, cpu_ceiling_millicores=1000))
    found = policy_of(narrow, "v", own)
    assert (found.cpu_floor_millicores, found.cpu_ceiling_millicores) == (500, 1000)


def test_modes() -> None:
    for mode, excluded in ((Mode.OFF, True), (Mode.OBSERVE, True), (Mode.REACTIVE, False), (Mode.PREDICTIVE, False)):
        found = policy_of(book(fleet=PolicySpec(mode=mode)), "v", Policy())
        assert (found.mode, found.excluded) == (mode, excluded)
    assert not policy_of(book(fleet=PolicySpec(mode=Mode.OFF), vm_v=PolicySpec(mode=Mode.PREDICTIVE)), "v", Policy()).excluded


def test_budgets() -> None:
    gold = SlaSpec(name="Gold", objectives=(Objective(metric="ready", threshold_permille=20, share_permille=995),))
    clients = {
        "own": ClientSpec(name="O", sla="gold", budget_permille=3),
        "sla": ClientSpec(name="S", sla="gold"),
        "bare": ClientSpec(name="B"),
    }
    all_ = book(clients).with_rows(Kind.SLA, [row("gold", gold)])
    found = objectives_of(all_, Objectives(budget=0.02, clients={"sla": 0.5, "bare": 0.04, "file": 0.07}, period_s=86_400))
    assert {name: round(found.of(name), 6) for name in ("own", "sla", "bare", "file", "nobody")} == {
        "own": 0.003,
        "sla": 0.005,
        "bare": 0.04,
        "file": 0.07,
        "nobody": 0.02,
    }
    assert found.period_s == 86_400


SPECS = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from(["low", "normal", "high", "critical"]),
        "mode": st.sampled_from(list(Mode)),
        "excluded": st.booleans(),
        "size_quantile": st.floats(0.5, 0.99),
        "cpu_floor_millicores": st.integers(0, 1000),
        "cpu_ceiling_millicores": st.integers(1000, 9000),
        "disk_ceiling_bytes_per_s": st.integers(0, 2**40),
    },
)


@given(SPECS, SPECS, SPECS, SPECS)
def test_what_is_merged_is_valid_and_within_what_the_host_allows(fleet: Any, client: Any, vm: Any, own: Any) -> None:
    own = {name: value for name, value in own.items() if name not in ("size_quantile", "priority")}
    domain = Policy(client="a", **own)
    levels = book({"a": ClientSpec(name="A")}, fleet=PolicySpec(**fleet), client_a=PolicySpec(**client), vm_v=PolicySpec(**vm))
    merged, origins = origins_of(levels, "v", domain)
    assert msgspec.json.decode(msgspec.json.encode(merged), type=Policy) == merged
    assert merged.client == "a"
    assert not domain.excluded or merged.excluded
    for name, stricter in (("cpu_floor_millicores", max), ("cpu_ceiling_millicores", min), ("disk_ceiling_bytes_per_s", min)):
        bound, found = getattr(domain, name), getattr(merged, name)
        assert bound is None or stricter(bound, found) == found
    for name, level in origins.items():
        spec = {"fleet": fleet, "client": client, "vm": vm}.get(level, {})
        assert level == "domain" or name in ("excluded", "size_quantile_permille") or name in spec
