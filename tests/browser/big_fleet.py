"""A fleet of 1,000 hosts and 10,000 VMs for the page's timing: documents made once, so that the page is timed and not the double."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fleet_double import FleetDouble

from coordinator.service import view as vw
from coordinator.service.sizing import HostLoad
from shared.model import Mode
from shared.units import RESOURCES


class BigFleet(FleetDouble):
    """As FleetDouble with `hosts` hosts of ten VMs; every host its own load, 1 in 100 silent."""

    def __init__(self, hosts: int = 1000) -> None:
        super().__init__(hosts=4, vms_per_host=10)
        small = FleetDouble(hosts=4, vms_per_host=10)
        pattern = next(found for found in small.hosts() if found.alive)
        groups = small.groups("host", 4).items[0]
        self.modes = {f"kvm-{h:04}": Mode.PREDICTIVE if h % 3 else Mode.REACTIVE for h in range(hosts)}
        self.home = {f"vm-{h:04}-{v:02}": f"kvm-{h:04}" for h in range(hosts) for v in range(10)}
        self.silent = {f"kvm-{h:04}" for h in range(hosts) if h % 100 == 7}
        self._hosts = [self._made(pattern, h) for h in range(hosts)]
        self._sums = [_scaled(groups, host.id, _share(h)) for h, host in enumerate(self._hosts)]

    def hosts(self) -> Sequence[vw.HostView]:
        return self._hosts

    def host(self, host_id: str) -> vw.HostView | None:
        return next((found for found in self._hosts if found.id == host_id), None)

    def groups(self, kind: vw.GroupKind | None, limit: int) -> vw.GroupList:
        return vw.GroupList(issued_s=self.now_s, total=len(self._sums), items=tuple(self._sums[:limit]))

    def _made(self, pattern: vw.HostView, h: int) -> vw.HostView:
        host_id = f"kvm-{h:04}"
        silent = host_id in self.silent
        capacity = (pattern.capacity.cpu_millicores, pattern.capacity.memory_bytes)
        load = tuple(
            HostLoad(resource=name, capacity=float(all_), mean=_share(h) * all_, margin=0.1 * all_, step_s=self.now_s, learned=True)
            for name, all_ in zip(RESOURCES, capacity, strict=False)
        )
        return msgspec.structs.replace(
            pattern,
            id=host_id,
            alive=not silent,
            counts_as_full=silent,
            silent_reason="no heartbeat for 42 s" if silent else None,
            mode=self.modes[host_id],
            cpu_used_millicores=None if silent else int(_share(h) * capacity[0]),
            vm_ids=tuple(f"vm-{h:04}-{v:02}" for v in range(10)),
            load=load,
        )


def _share(h: int) -> float:
    return 0.2 + 0.79 * (h * 37 % 1000) / 1000


def _scaled(group: vw.GroupSummary, name: str, share: float) -> vw.GroupSummary:
    first = group.resources[0]
    mean = share * 16_000
    cpu = msgspec.structs.replace(
        first, mean_now=mean, mean_hour=mean * 1.02, low_hour=mean * 0.9, high_hour=mean * 1.1, highest=mean * 1.15
    )
    return msgspec.structs.replace(group, name=name, resources=(cpu, *group.resources[1:]))
