"""The guard's rules over time, checked from outside: what was submitted to one host, in order, whatever life of the agent submitted it.

Turns per VM and lever within the window, strides of memory, memory lost within an hour, VMs cut within a minute, growth without a plan.
Steps that take something back (the agent's own undo, an owner's undo) are not held to what keeps changes rare. An owner's undo that turns
a lever is a turn all the same, when it happens; the agent's own is none. Settings come from the world, values from the journal's intents.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from agent.events import Intent
from shared.config import GuardConfig
from shared.model import Allocation
from shared.plan import StepKind
from shared.units import MIB, NS_PER_S, UNLIMITED

HOUR_NS, MINUTE_NS = 3600 * NS_PER_S, 60 * NS_PER_S
WEIGHTS = frozenset({StepKind.CPU_SHARES, StepKind.CPU_PERIOD, StepKind.DISK_WEIGHT, StepKind.MIGRATE})
MEMORY = (StepKind.MEMORY, StepKind.VIRTIO_MEM, StepKind.DIMM)
# Authors of steps that only go back to what was; see the guard's `restoring`.
BACK_TO = frozenset({"operator", "migration"})
# Growth that nobody but the host asked for.
LOCAL = frozenset({"reactive", "autonomy"})
BUDGETED = {
    StepKind.CPU_QUOTA: "cpu_quota_millicores",
    StepKind.MEMORY: "memory_bytes",
    StepKind.NET_RX: "net_rx_bits_per_s",
    StepKind.NET_TX: "net_tx_bits_per_s",
}
# A stride must be told from standing still (2 MiB, 1 %), and values are rounded to pages.
STRIDE_SLACK = 4 * MIB


class Pace:
    """Follows the steps of one host."""

    def __init__(
        self,
        config: GuardConfig,
        initial: dict[str, Allocation],
        in_force: Callable[[str], Allocation | None],
        violated: Callable[[str], None],
    ) -> None:
        """`in_force`: what the host shows of a VM now, None where it does not answer; it is not asked of the agent."""
        self._config, self._initial, self._in_force, self._violated = config, initial, in_force, violated
        self._grew: set[tuple[str, StepKind]] = set()
        self._turns: dict[tuple[str, StepKind], deque[int]] = defaultdict(deque)
        self._memory: dict[str, deque[tuple[int, int]]] = defaultdict(deque)  # sums before cuts
        self._cut_at: dict[str, int] = {}
        self._held: dict[tuple[str, StepKind], deque[tuple[int, int]]] = defaultdict(deque)  # values before growth
        self.turned = 0  # how often anything turned: a world in which nothing does proves nothing
        self.most = 0  # turns of one lever within one window, at the most

    def submitted(self, intent: Intent, now_ns: int) -> None:
        """A step is on its way; `intent` is its journal entry."""
        step, before = intent.step, intent.before
        if step.kind in WEIGHTS or intent.undo_of:
            return
        growth = before != UNLIMITED and (step.value == UNLIMITED or step.value > before)
        if step.kind is StepKind.MEMORY:
            self._check_stride(intent, growth)
        if growth:
            self._grew.add((step.vm_id, step.kind))
            if intent.origin in LOCAL and step.reason != "lease_over":
                self._check_budget(intent, now_ns)
            return
        turns = self._note_turn(step.vm_id, step.kind, now_ns)
        if intent.origin in BACK_TO:
            return
        if turns > self._config.flap_reversals:
            self._violated(f"{step.kind} of {step.vm_id} turned {turns} times within {self._config.flap_window_s} s")
        self._check_cut(intent, now_ns)

    def forget(self, vm_id: str) -> None:
        """The VM moved away: should it come back, it is a new one here."""
        self._cut_at.pop(vm_id, None)
        self._memory.pop(vm_id, None)
        self._grew = {key for key in self._grew if key[0] != vm_id}
        for followed in (self._turns, self._held):
            for key in [key for key in followed if key[0] == vm_id]:
                del followed[key]  # type: ignore[attr-defined]  # both are keyed by (VM, lever)

    def _note_turn(self, vm_id: str, kind: StepKind, now_ns: int) -> int:
        """The lever falls; returns how often it turned within the window when this is a turn, else 0."""
        key = vm_id, kind
        if key not in self._grew:
            return 0
        self._grew.discard(key)
        self.turned += 1
        turns = self._turns[key]
        turns.append(now_ns)
        _forget(turns, now_ns - self._config.flap_window_s * NS_PER_S)
        self.most = max(self.most, len(turns))
        return len(turns)

    def _check_stride(self, intent: Intent, growth: bool) -> None:
        share = self._config.memory_grow_max_permille if growth else self._config.memory_shrink_max_permille
        step, before = intent.step, intent.before
        if abs(step.value - before) > before * share // 1000 + (STRIDE_SLACK if growth else 0):
            self._violated(f"memory of {step.vm_id} goes from {before} to {step.value} in one step")

    def _check_cut(self, intent: Intent, now_ns: int) -> None:
        step, config = intent.step, self._config
        self._cut_at[step.vm_id] = now_ns
        cut = sum(at_ns > now_ns - MINUTE_NS for at_ns in self._cut_at.values())
        radius = max(1, len(self._initial) * config.blast_radius_permille // 1000)
        if cut > radius:
            self._violated(f"{cut} of {len(self._initial)} VMs cut within a minute, at most {radius}")
        shown = self._in_force(step.vm_id)
        if step.kind in MEMORY and shown is not None:
            total = (shown.memory_bytes or 0) + (shown.virtio_mem_bytes or 0) + (shown.dimm_bytes or 0)
            cuts = self._memory[step.vm_id]
            cuts.append((now_ns, total))
            peak = max(value for at_ns, value in cuts if at_ns > now_ns - HOUR_NS)
            after = total - (intent.before - step.value)
            # A growth in flight counts for the guard and may yet fail: one stride of it is forgiven.
            share = config.memory_cut_per_hour_permille + config.memory_grow_max_permille
            if after < peak - peak * share // 1000:
                self._violated(f"memory of {step.vm_id} falls from {peak} to {after} within an hour")

    def _check_budget(self, intent: Intent, now_ns: int) -> None:
        """A window begins with some value that was in force within it: the largest of them bounds what the budget may be a share of."""
        step, config = intent.step, self._config
        name = BUDGETED.get(step.kind)
        if name is None:
            return
        held = self._held[step.vm_id, step.kind]
        held.append((now_ns, intent.before))
        window_ns = config.growth_budget_window_s * NS_PER_S
        began = getattr(self._initial[step.vm_id], name)
        if began is None or began == UNLIMITED:
            return  # began with all there is
        # Of the values before growth within the window, the first is the window's start at the latest.
        base = max(began, *(value for at_ns, value in held if at_ns > now_ns - window_ns))
        if step.value == UNLIMITED or step.value > base + base * config.growth_budget_permille // 1000:
            self._violated(f"{step.kind} of {step.vm_id} grows to {step.value} without a plan, it had {base}")


def _forget(times: deque[int], since_ns: int) -> None:
    while times and times[0] <= since_ns:
        times.popleft()
