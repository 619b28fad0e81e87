"""The newest placement of the API's double fleet: invented numbers, one move, one host emptied."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.model import FleetPlacement, Move, PoolEnergy
from coordinator.placement.explain.readings import Ahead, HostAhead, PartAhead, VmAhead
from coordinator.placement.explain.why_not import Binding, Why, WhyNot
from coordinator.service.placing import HostPlacement, MoveAdvice, PlacementView, VmPlacement, advice_of
from shared.units import RESOURCES

MOVE = Move(vm_id="vm-01-01", from_host="kvm-01", to_host="kvm-04", gain=0.41, cost=0.13, why="kvm-01 would run short of CPU at 14:10 UTC")


class PlacingDouble:
    """PlacingView over invented numbers."""

    home: dict[str, str]
    now_s: int

    def moves(self) -> MoveAdvice:
        return advice_of(*self._newest())

    def placement(self) -> PlacementView:
        solved_s, plan = self._newest()
        return PlacementView(solved_s=solved_s, plan=plan)

    async def placement_hosts(self, limit: int) -> Sequence[HostAhead]:
        return tuple(self._host(host_id) for host_id in sorted(set(self.home.values())))[:limit]

    async def placement_host(self, host_id: str) -> HostPlacement | None:
        if host_id not in self.home.values():
            return None
        part = PartAhead(kind="client", name="aurora", vms=3, resources=ahead(0.4))
        return HostPlacement(ahead=self._host(host_id), parts=(part,))

    async def placement_vm(self, vm_id: str) -> VmPlacement | None:
        if vm_id not in self.home:
            return None
        here = self.home[vm_id]
        told = VmAhead(
            vm_id=vm_id,
            client="aurora",
            application="",
            host_before=here,
            host_after=here,
            fixed="",
            migration_s=41.0,
            resources=ahead(0.1),
        )
        other = await self.why_not(vm_id, "kvm-02")
        assert other is not None
        return VmPlacement(ahead=told, why=Why(vm_id=vm_id, from_host=here, to_host=here, text=f"stays on {here}", others=(other,)))

    async def why_not(self, vm_id: str, host_id: str) -> WhyNot | None:
        if vm_id not in self.home or host_id not in self.home.values():
            return None
        lacking = Binding(kind="capacity", text=f"{host_id} would lack 2.10 GiB of memory", change=f"2.10 GiB more of memory on {host_id}")
        return WhyNot(vm_id=vm_id, host_id=host_id, here=False, possible=False, total=0.3, money={"hosts": 0.3}, bindings=(lacking,))

    def _newest(self) -> tuple[float | None, FleetPlacement | None]:
        if not self.home:
            return None, None
        energy = PoolEnergy(
            pool="default", hosts=4, kwh_before=0.41, kwh_after=0.36, budget_kwh=None, hard=False, price_before=0.1, price_after=0.09
        )
        plan = FleetPlacement(
            issued_s=self.now_s, status="feasible", moves=(MOVE,), before={"hosts": 20.0}, after={"hosts": 17.07, "moves": 0.13},
            saving=2.8, bound=16.9, gap=0.017, hosts_before=3, hosts_after=3, energy=(energy,), engine="plain",
            seed=1, wall_ms=96.0, digest="5e1f",
            notes=("no site file",),
        )  # fmt: skip
        return float(self.now_s), plan

    def _host(self, host_id: str) -> HostAhead:
        vms = sum(home == host_id for home in self.home.values())
        more = {"kvm-01": -1, "kvm-04": 1}.get(host_id, 0)
        return HostAhead(
            host_id=host_id,
            pool="default",
            closed=False,
            vms_before=vms,
            vms_after=vms + more,
            before=ahead(0.6),
            after=ahead(0.6 + more / 10),
        )


def ahead(share: float) -> tuple[Ahead, ...]:
    """Every resource at this share of a room of 16,000."""
    rows = tuple(16_000.0 * share * (1.0 + b / 40) for b in range(12))
    return tuple(Ahead(resource=name, room=16_000.0, mean=rows, high=tuple(1.2 * row for row in rows)) for name in RESOURCES)
