"""Why demand went unserved in a simulated world: every second of violation gets one cause, looked up right after the sample that saw it.

`Causes` is a watcher of bench.world (Settings.watch). The truth comes from the simulated host; what stood in the way comes from the agent's
own ledger and stories. Of several reasons the first of this list is named:

- host: the limit in force would do, the machine itself has not enough (CPU shared out, memory swapped).
- full: what the VM lacks passes the room left under the host's commit limit.
- refused CODE: the guard answered the growth with this code within the last five minutes.
- onset: the first sample of a shortage: nobody who looks at samples could have known earlier.
- reacting: later samples: a growth is on its way, in strides or by a slow lever.
Each is split by what the newest forecast said: `seen` when the demand lay within the 0.95 quantile of the peak within two steps (then the
size was the choice of the plan, or the plan came late), `unseen` when it passed it, `-` where there was no forecast.
Invariant: the seconds of all causes sum to the host's own violation seconds per resource.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from agent.adapters.simulated_vm import TRUTH_RESOURCES, SimulatedVm
from agent.adapters.workload import SLOT_NS, Demand
from coordinator.sizing.ahead import rows_of
from shared.plan import StepKind
from shared.units import CPU, MEMORY, NET_RX, NET_TX, NS_PER_S

if TYPE_CHECKING:
    from bench.world_agent import AgentNode

KINDS: Final = (StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.NET_RX, StepKind.NET_TX)
ROW: Final = (CPU, MEMORY, NET_RX, NET_TX)
SEEN_LEVEL: Final = 0.95
SEEN_STEP: Final = 1  # index: the peak within two steps
REFUSAL_NS: Final = 300 * NS_PER_S  # the agent tells the same refusal once in so long
ONSET_S: Final = 6.0  # one sample and its jitter


class Causes:
    """Seconds of violation by (host, resource, cause). Pass `self` as `watch`."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, str, str]] = Counter()
        self._seen: dict[str, list[float]] = {}
        self._run: Counter[tuple[str, int]] = Counter()

    def __call__(self, node: AgentNode) -> None:
        """After a sample of `node`."""
        for vm in node.host.machines:
            vm_id = vm.spec.vm_id
            before = self._seen.get(vm_id, [0.0] * len(TRUTH_RESOURCES))
            if vm.violated_s == before:
                for i in range(len(TRUTH_RESOURCES)):
                    self._run.pop((vm_id, i), None)
                continue
            for i, resource in enumerate(TRUTH_RESOURCES):
                lost = vm.violated_s[i] - before[i]
                if lost > 0.0:
                    self._run[vm_id, i] += 1
                    self.seconds[node.host_id, resource, self._cause(node, vm, i)] += lost  # type: ignore[assignment]
                else:
                    self._run.pop((vm_id, i), None)
            self._seen[vm_id] = list(vm.violated_s)

    def by_cause(self, hosts: frozenset[str] | None = None) -> Mapping[tuple[str, str], float]:
        """Minutes by (resource, cause), of these hosts (None = all)."""
        found: Counter[tuple[str, str]] = Counter()
        for (host, resource, cause), seconds in self.seconds.items():
            if hosts is None or host in hosts:
                found[resource, cause] += seconds / 60  # type: ignore[assignment]
        return found

    def _cause(self, node: AgentNode, vm: SimulatedVm, i: int) -> str:
        slot = node.world.now_ns // SLOT_NS
        need = max(_needs(node.host.demand_at(vm.index, at))[i] for at in (slot, slot - 1))  # a sample's period lies across two slots
        return f"{self._obstacle(node, vm, i, need)}, {_foreseen(node, vm.spec.vm_id, i, need)}"

    def _obstacle(self, node: AgentNode, vm: SimulatedVm, i: int, need: float) -> str:
        limit = _limit(vm, i)
        if need <= limit:
            # The demand of this slot fits; the second that was lost is a moment ago, or the machine's own.
            return "onset" if self._run[vm.spec.vm_id, i] == 1 else "reacting" if i != 0 else "host"
        if need - limit > _room(node, i):
            return "full"
        code = _refusal(node, vm.spec.vm_id, KINDS[i])
        if code:
            return f"refused {code}"
        return "onset" if self._run[vm.spec.vm_id, i] == 1 else "reacting"


def _needs(demand: Demand) -> tuple[float, float, float, float]:
    return demand.cpu_millicores, demand.memory_bytes, demand.net_rx_bits_per_s, demand.net_tx_bits_per_s


def _limit(vm: SimulatedVm, i: int) -> float:
    if i == 0:
        most = 1000.0 * (vm.vcpus - vm.offline)
        return min(most, vm.quota) if vm.quota >= 0 else most
    if i == 1:
        return vm.memory
    ceiling = vm.net_rx if i == 2 else vm.net_tx  # TRUTH_RESOURCES' order
    return float(ceiling if ceiling >= 0 else vm.spec.net_max_bits_per_s)


def _room(node: AgentNode, i: int) -> float:
    capacity = node.host.capacity()
    limits = (
        capacity.cpu_commit_millicores,
        capacity.memory_commit_bytes,
        capacity.net_commit_bits_per_s,
        capacity.net_commit_bits_per_s,
    )
    return limits[i] - sum(_limit(vm, i) for vm in node.host.machines)


def _refusal(node: AgentNode, vm_id: str, kind: StepKind) -> str:
    """Code of the newest refusal of a growth of this lever, where it is fresh."""
    story = node.core.why(vm_id) if node.core is not None else None
    for line in reversed(story or ()):
        if line.at_ns < node.world.now_ns - REFUSAL_NS:
            break
        if line.kind == kind and line.verdict in ("refused", "waiting") and (line.to_value or 0) > (line.from_value or 0):
            return line.code
    return ""


def _foreseen(node: AgentNode, vm_id: str, i: int, need: float) -> str:
    forecasts = node.world.coordinator.forecasts
    row = rows_of(forecasts[-1].vm_ids).get(vm_id) if forecasts else None
    if row is None:
        return "-"
    newest = forecasts[-1]
    level = newest.levels.index(SEEN_LEVEL)
    return "seen" if need <= float(newest.peak_quantiles[row, ROW[i], SEEN_STEP, level]) else "unseen"
