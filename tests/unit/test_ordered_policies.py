"""The coordinator's policies at the host: they narrow what metadata allow, reach rules and guard, and do not turn up as metadata."""

from __future__ import annotations

import pytest

from agent import events as ev
from agent.acting.ordered import narrowed, with_orders
from agent.core import AgentCore
from coordinator.gateway import sessions as gs
from shared.frame import decode_coordinator, encode
from shared.messages import Hello, Inventory, SetPolicies
from shared.model import Domain, HostCapacity, Mode, Policy, Priority

CAPACITY = HostCapacity(
    cpu_millicores=8000,
    memory_bytes=2**34,
    net_bits_per_s=10**9,
    cpu_commit_millicores=8000,
    memory_commit_bytes=2**34,
    net_commit_bits_per_s=10**9,
)


def domain(vm_id: str, **policy: object) -> Domain:
    return Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=2**30, policy=Policy(**policy))  # type: ignore[arg-type]


def test_an_order_narrows_and_never_widens() -> None:
    own = Policy(cpu_floor_millicores=400, cpu_ceiling_millicores=2000, memory_ceiling_bytes=100)
    wide = narrowed(own, Policy(cpu_floor_millicores=100, cpu_ceiling_millicores=9000, priority=Priority.HIGH))
    assert wide == Policy(cpu_floor_millicores=400, cpu_ceiling_millicores=2000, memory_ceiling_bytes=100, priority=Priority.HIGH)
    assert narrowed(own, Policy(cpu_floor_millicores=500, net_floor_bits_per_s=7)).cpu_floor_millicores == 500
    assert narrowed(Policy(excluded=True), Policy()).excluded
    assert [narrowed(own, Policy(mode=mode)).excluded for mode in Mode] == [True, True, False, False]


def test_only_the_vms_that_are_named_are_touched() -> None:
    one, two = domain("one"), domain("two", client="b")
    assert with_orders((one, two), {"two": Policy(client="c"), "gone": Policy()}) == (one, domain("two", client="c"))


def test_the_agent_tells_what_its_domains_say_and_acts_on_what_is_in_force() -> None:
    core = AgentCore(host_id="h1", boot_id="b1", capacity=CAPACITY)
    core.handle(ev.InventoryRead(domains=(domain("one"), domain("two"))), 1)
    core.handle(ev.PoliciesOrdered(policies={"one": Policy(mode=Mode.OBSERVE)}), 2)
    assert {vm.vm_id: vm.excluded for vm in core.vms()} == {"one": True, "two": False}
    told = core.handle(ev.LinkUp(epoch=1, acked=-1), 3)
    assert [i.message for i in told if isinstance(getattr(i, "message", None), Inventory)] == [
        Inventory(domains=(domain("one"), domain("two")))
    ]
    core.handle(ev.InventoryRead(domains=(domain("one"), domain("two"), domain("three"))), 4)
    assert {vm.vm_id for vm in core.vms() if vm.excluded} == {"one"}, "a new inventory keeps the order"
    core.handle(ev.PoliciesOrdered(policies={}), 5)
    assert not any(vm.excluded for vm in core.vms())
    assert core.hello(1, "0.1.0", "simulated").takes_policies


@pytest.mark.parametrize("takes", [True, False])
def test_only_an_agent_that_takes_policies_is_sent_them(takes: bool) -> None:
    gateway = gs.GatewayCore(gs.GatewaySettings(epoch=1, stale_host_s=30))
    order = gs.PoliciesOrdered("h1", {"one": Policy(mode=Mode.OBSERVE)})
    assert gateway.handle(order, 1) == [], "nobody there"
    hello = Hello(
        host_id="h1",
        boot_id="b1",
        agent_version="0.1.0",
        wall_ns=1,
        capacity=CAPACITY,
        mode=Mode.OBSERVE,
        mode_pinned=False,
        takes_policies=takes,
    )
    gateway.handle(gs.Connected(1, "h1"), 1)
    gateway.handle(gs.Received(1, encode(hello)), 1)
    sent = [decode_coordinator(i.frame) for i in gateway.handle(order, 2) if isinstance(i, gs.Reply)]
    assert sent == ([SetPolicies(policies={"one": Policy(mode=Mode.OBSERVE)})] if takes else [])
