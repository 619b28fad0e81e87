"""What must always hold in the simulated world, checked from outside the cores: from workload files, hosts, disks and frames.

Nothing here asks a core for its opinion of itself where the truth can be had elsewhere: limits come from the workload file, values in
force from the simulated host, the mode from what was commanded, acknowledged data from the bytes that were shipped and logged.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from agent import events as ev
from agent.ports import RawHost, RawVm
from bench.world_rules import Pace
from shared.errors import HostError, Refusal
from shared.frame import decode_agent, decode_block
from shared.messages import Samples
from shared.model import Allocation, HostSample, VmSample
from shared.plan import Step, StepKind
from shared.units import BUCKET_NS, BUCKET_S, MIB, NS_PER_S, UNLIMITED, bucket_start_s
from shared.workload import VmWorkload

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_agent import AgentNode
    from bench.world_coordinator import CoordinatorNode

# An acting host's last step may still be moving this long after its mode was taken away.
SETTLE_NS = 300 * NS_PER_S
# A frame is full after this many sampling periods; buckets that old must be complete once the network has healed.
SETTLED_BUCKETS_S = 600
MEMORY_SLACK = 2 * MIB  # the balloon stops within pages of its target


class HostChecks:
    """Watches one host and its agent over all the agent's lives."""

    def __init__(self, world: World, node: AgentNode) -> None:
        self._world, self._node = world, node
        self._specs = {spec.vm_id: spec for each in world.files for spec in each.vms}
        self.frames: dict[int, bytes] = {}  # sequence -> what was spooled under it
        self.sampled_ns: set[int] = set()
        self.steps: dict[str, Step] = {}  # everything submitted but undos
        self.undos: set[str] = set()
        self.deaths = 0
        self.acked = -1
        self._intents: dict[str, ev.Intent] = {}
        self._newest_plan: ev.PlanAccepted | None = None
        self._readings: dict[str, VmSample] = {}
        self._untouched: dict[str, tuple[int | None, ...]] = {}
        self._within: dict[str, tuple[int | None, ...]] = {}  # VM -> values that were last found within its bounds, which never change
        self._submitted_ns = -(10**18)
        initial = {spec.vm_id: spec.initial for each in (world.files if world.settings.movable else [node.file]) for spec in each.vms}
        self.pace = Pace(world.settings.guard, initial, self._shown, self._violated)

    def _shown(self, vm_id: str) -> Allocation | None:
        try:
            return self._node.host.allocation(vm_id)
        except (HostError, Refusal):  # one of the world's faults, or it moved away
            return None

    def shipped(self, sequence: int, frame: bytes) -> None:
        """A frame went into the spool."""
        if sequence in self.frames:
            self._violated(f"sequence {sequence} used twice")
        self.frames[sequence] = frame

    def sampled(self, sample: HostSample) -> None:
        """A sample went into the core."""
        self.sampled_ns.add(sample.wall_ns)
        self._readings.update(sample.vms)

    def died(self) -> None:
        """The process is gone, and with it the samples of an unfinished frame."""
        self.deaths += 1

    def acknowledged(self, sequence: int) -> None:
        """An acknowledgement is a promise: what it covers must be on the coordinator's disk."""
        logged = self._world.coordinator.ever
        for number in range(self.acked + 1, sequence + 1):
            if number in self.frames and (self._node.host_id, number) not in logged:
                self._violated(f"sequence {number} acknowledged and not durable")
        self.acked = max(self.acked, sequence)

    def mode_persisted(self, instruction: ev.PersistMode) -> None:
        """What goes to disk is what was commanded."""
        if (instruction.pinned, instruction.ordered) != (self._node.pinned, self._node.ordered):
            self._violated(f"{instruction} persisted, commanded {self._node.pinned}, {self._node.ordered}")

    def journalled(self, entry: ev.JournalEntry) -> None:
        """Plans are only ever accepted in rising order, over all lives of the agent."""
        if isinstance(entry, ev.Intent):
            self._intents[entry.step.id] = entry
        elif isinstance(entry, ev.PlanAccepted):
            newest = self._newest_plan
            if newest is not None and (entry.epoch, entry.sequence) <= (newest.epoch, newest.sequence):
                self._violated(f"plan {entry.epoch}.{entry.sequence} accepted after {newest.epoch}.{newest.sequence}")
            self._newest_plan = entry

    def submitted(self, step: Step) -> None:
        """A step is on its way to the hypervisor."""
        spec, intent = self._specs[step.vm_id], self._intents.get(step.id)
        self._submitted_ns = self._world.now_ns
        if step.id in self.steps or step.id in self.undos:
            self._violated(f"step {step.id} submitted twice")
        if not self._node.mode.acts:
            self._violated(f"mode {self._node.mode} submitted {step.id}")
        if intent is None or intent.step != step:
            self._violated(f"step {step.id} submitted without its intent in the journal")
            return
        if not within(spec, step.kind, step.value, self._floors(step.kind)):
            self._violated(f"{step.kind} = {step.value} of {spec.name}, floor {self._floors(step.kind)}, policy {spec.policy}")
        if intent.undo_of:
            self.undos.add(step.id)
            return
        self.steps[step.id] = step
        self.pace.submitted(intent, self._world.now_ns)
        if intent.origin in ("plan", "operator"):
            self._check_plan_step((intent.goal or step).id)
        core = self._node.core
        if core is not None and not core.link_up:
            self._check_alone(step, intent)

    def in_force(self, raw: RawHost | None = None) -> None:
        """What the host shows now (`raw`: was just read), stuck VMs included: bounds, commit limits, no change where none may be."""
        world, node = self._world, self._node
        if raw is None or raw.failures:
            faults = node.host.faults
            node.host.faults = msgspec.structs.replace(faults, stuck_vms=())
            raw = node.host.read()
            node.host.faults = faults
        vms = raw.vms
        for vm in vms:
            self._check_bounds(vm)
        if not node.mode.acts and world.now_ns - self._submitted_ns > SETTLE_NS:
            self._check_untouched(vms)
        else:
            self._untouched.clear()
        self._check_commit(vms)

    def _check_bounds(self, vm: RawVm) -> None:
        values = (vm.vcpus, vm.cpu_quota_millicores, vm.net_rx_ceil_bits_per_s, vm.net_tx_ceil_bits_per_s, _balloon(vm))
        if self._within.get(vm.vm_id) == values:
            return
        spec, broken = self._specs[vm.vm_id], False
        for kind, value in zip(_BOUNDED, values, strict=True):
            floor, slack = self._floors(kind), MEMORY_SLACK if kind is StepKind.MEMORY else 0
            if value is not None and not within(spec, kind, value, floor, slack):
                self._violated(f"{kind} of {spec.name} in force is {value}, floor {floor}, policy {spec.policy}")
                broken = True
        if not broken:
            self._within[vm.vm_id] = values

    def _check_untouched(self, vms: tuple[RawVm, ...]) -> None:
        """A balloon that an earlier mode set off may still follow a guest that frees memory late: left out once the host has acted."""
        for vm in vms:
            values = (vm.vcpus, vm.cpu_quota_millicores, vm.cpu_shares, vm.net_rx_ceil_bits_per_s, vm.net_tx_ceil_bits_per_s)
            now = values if self.steps else (*values, vm.memory_actual_bytes)
            before = self._untouched.setdefault(vm.vm_id, now)
            if before != now:
                self._violated(f"mode {self._node.mode} changed {vm.vm_id}: {before} to {now}")

    def _check_commit(self, vms: tuple[RawVm, ...]) -> None:
        capacity = self._node.host.capacity()
        cpu = memory = rx = tx = 0
        for vm in vms:
            spec = self._specs[vm.vm_id]
            cpu += _limited(vm.cpu_quota_millicores, (vm.vcpus or 0) * 1000)
            memory += vm.memory_actual_bytes or 0
            rx += _limited(vm.net_rx_ceil_bits_per_s, spec.net_max_bits_per_s)
            tx += _limited(vm.net_tx_ceil_bits_per_s, spec.net_max_bits_per_s)
        for what, total, limit in (
            ("cpu", cpu, capacity.cpu_commit_millicores),
            ("memory", memory, capacity.memory_commit_bytes + MEMORY_SLACK * len(vms)),
            ("net_rx", rx, capacity.net_commit_bits_per_s),
            ("net_tx", tx, capacity.net_commit_bits_per_s),
        ):
            if total > limit:
                self._violated(f"{what} {total} in force, the commit limit is {limit}")

    def _check_plan_step(self, plan_step_id: str) -> None:
        newest = self._newest_plan
        if newest is None or plan_step_id not in newest.step_ids:
            self._violated(f"plan step {plan_step_id} carried out, it is not of the newest accepted plan")

    def _check_alone(self, step: Step, intent: ev.Intent) -> None:
        """Without a coordinator: growth only, and only what a plan still in force had ordered or pressure asks for."""
        if step.kind is not StepKind.CPU_SHARES and not _grows(intent.before, step.value):
            self._violated(f"without a coordinator {step.kind} of {step.vm_id} shrinks from {intent.before} to {step.value}")
        elif intent.origin in ("plan", "operator"):
            if self._world.now_ns >= (intent.goal or step).deadline_ns:
                self._violated(f"without a coordinator {step.id} of a plan past its deadline")
        elif not self._pressed(step, intent.before):
            self._violated(f"without a coordinator {step.kind} of {step.vm_id} grows to {step.value} with no pressure")

    def _pressed(self, step: Step, limit: int) -> bool:
        reading = self._readings.get(step.vm_id)
        if reading is None:
            return False
        share = self._world.settings.reactive.grow_at_permille / 1000
        if step.kind in (StepKind.CPU_QUOTA, StepKind.VCPUS):
            used = max(reading.cpu_used_millicores or 0, reading.cpu_used_peak_millicores or 0)
            room = min(_limited(reading.cpu_quota_millicores, 2**60), (reading.vcpus or 0) * 1000)
            return used >= share * room or (reading.cpu_throttled_permille or 0) > 0
        if step.kind in (StepKind.MEMORY, StepKind.MEMORY_HIGH, StepKind.VIRTIO_MEM, StepKind.DIMM):
            limit = limit if step.kind is StepKind.MEMORY else 2**53  # the others give way when the whole is short
            stalled = bool(reading.psi_memory_some_permille or reading.memory_swap_bytes_per_s)
            # strides follow each other at once: all of them are judged by the size at the sample that asked for them
            return stalled or (reading.memory_used_bytes or 0) >= share * min(limit, reading.memory_allocated_bytes or limit)
        if step.kind in (StepKind.DISK_BYTES, StepKind.DISK_OPS):
            return bool(reading.psi_io_some_permille)
        rx = step.kind is StepKind.NET_RX
        used = (reading.net_rx_bits_per_s if rx else reading.net_tx_bits_per_s) or 0
        return used >= share * limit or bool(reading.net_rx_dropped_per_s if rx else reading.net_tx_dropped_per_s)

    def _floors(self, kind: StepKind) -> int:
        guard = self._world.settings.guard
        if kind is StepKind.MEMORY:
            return guard.memory_floor_bytes
        if kind is StepKind.CPU_QUOTA:
            return guard.cpu_floor_millicores
        return guard.net_floor_bits_per_s if kind in (StepKind.NET_RX, StepKind.NET_TX) else 1

    def _violated(self, what: str) -> None:
        self._world.violated(f"{self._node.host_id}: {what}")


_BOUNDED = (StepKind.VCPUS, StepKind.CPU_QUOTA, StepKind.NET_RX, StepKind.NET_TX, StepKind.MEMORY)
_RANGES = {  # levers whose values no policy bounds
    StepKind.CPU_PERIOD: (1_000, 1_000_000),
    StepKind.MEMORY_HIGH: (1, 2**53),
    StepKind.DISK_OPS: (1, 2**53),
    StepKind.DISK_WEIGHT: (1, 1000),
    StepKind.NET_TX_RATE: (0, 2**53),
}


def _balloon(vm: RawVm) -> int | None:
    """The balloon's part of what the guest has."""
    return None if vm.memory_actual_bytes is None else vm.memory_actual_bytes - (vm.virtio_mem_bytes or 0) - (vm.dimm_bytes or 0)


def within(spec: VmWorkload, kind: StepKind, value: int, floor: int, slack: int = 0) -> bool:
    """Whether `value` lies within the VM's policy and its domain's maxima; `floor` is the host's own, `slack` how far below it is fine."""
    policy = spec.policy
    low: int | None
    high: int | None
    if kind is StepKind.CPU_SHARES:
        return 2 <= value <= 262_144
    if kind in _RANGES:
        low, most = _RANGES[kind]
        return low <= value <= most or (value == UNLIMITED and kind in (StepKind.MEMORY_HIGH, StepKind.DISK_OPS))
    if kind in (StepKind.VCPUS, StepKind.VCPUS_ONLINE):
        return 1 <= value <= spec.vcpus_max
    if kind in (StepKind.VIRTIO_MEM, StepKind.DIMM):
        return 0 <= value <= spec.memory_max_bytes
    if kind is StepKind.MEMORY:
        low, high, most = policy.memory_floor_bytes, policy.memory_ceiling_bytes, spec.memory_max_bytes
    elif kind is StepKind.CPU_QUOTA:
        low, high, most = policy.cpu_floor_millicores, policy.cpu_ceiling_millicores, spec.vcpus_max * 1000
    elif kind is StepKind.DISK_BYTES:
        low, high, most = policy.disk_floor_bytes_per_s, policy.disk_ceiling_bytes_per_s, 2**53
    else:
        low, high, most = policy.net_floor_bits_per_s, policy.net_ceiling_bits_per_s, spec.net_max_bits_per_s
    if value == UNLIMITED:
        return high is None and kind is not StepKind.MEMORY
    return max(floor, low or 0) - slack <= value <= min(most, high or most)


def check_coordinator(node: CoordinatorNode) -> None:
    """A host not heard of for too long, or not at all since the coordinator's start, must count as silent."""
    for host_id, record in node.cycle.fleet.hosts.items():
        if record.alive and not node.recently_heard(host_id):
            node.world.violated(f"{host_id} counts as alive, last heard at {node.heard_ns.get(host_id)}")


def check_healed(world: World) -> None:
    """After fair weather: every frame is logged once and as it was shipped, every sample counted once, every step ended once."""
    logged: dict[str, set[int]] = {}
    counts: Counter[tuple[int, str]] = Counter()
    nodes = {node.host_id: node for node in world.agents}
    for (host_id, sequence), frame in world.coordinator.ever.items():
        checks = nodes[host_id].checks
        if checks.frames.get(sequence) != frame:
            world.violated(f"{host_id}: frame {sequence} in the log is not the one that was shipped")
        message = decode_agent(frame)
        for sample in decode_block(message.block) if isinstance(message, Samples) else ():
            times = logged.setdefault(host_id, set())
            if sample.wall_ns in times:
                world.violated(f"{host_id}: sample of {sample.wall_ns} logged twice")
            times.add(sample.wall_ns)
            counts.update((bucket_start_s(sample.wall_ns), vm_id) for vm_id in sample.vms)
    for node in world.agents:
        _check_delivered(node, logged.get(node.host_id, set()))
        _check_outcomes(node)
    _check_buckets(world, counts)


def _check_delivered(node: AgentNode, logged: set[int]) -> None:
    world, checks = node.world, node.checks
    newest = max(checks.frames, default=-1)
    missing = [n for n in checks.frames if (node.host_id, n) not in world.coordinator.ever and n < newest - 2]
    if missing:
        world.violated(f"{node.host_id}: frames {missing[:5]} never arrived")
    if logged - checks.sampled_ns:
        world.violated(f"{node.host_id}: samples logged that nobody took")
    lost = len(checks.sampled_ns - logged)
    allowed = (checks.deaths + 4) * world.settings.frame_samples
    if lost > allowed:
        world.violated(f"{node.host_id}: {lost} samples lost, unfinished frames explain {allowed}")


def _check_outcomes(node: AgentNode) -> None:
    """Every submitted step has one outcome at the coordinator, or is open still."""
    world = node.world
    told: dict[str, set[str]] = {}
    for host_id, step_id, state in world.coordinator.outcomes:
        if host_id == node.host_id:
            told.setdefault(step_id, set()).add(state)
    recent_ns = world.now_ns - 120 * NS_PER_S
    fresh = {e.outcome.step.id for e in node.journal if isinstance(e, ev.Closed) and e.outcome.finished_ns > recent_ns}
    fresh |= {e.step.id for e in node.journal if isinstance(e, ev.Intent) and e.at_ns > recent_ns}
    for step_id in node.checks.steps:
        states = told.get(step_id, set())
        if len(states) != 1 and not (not states and step_id in fresh):
            world.violated(f"{node.host_id}: step {step_id} has the outcomes {sorted(states)} at the coordinator")
    for step_id, states in told.items():
        if len(states) > 1:
            world.violated(f"{node.host_id}: step {step_id} ended as {sorted(states)}")


def _check_buckets(world: World, counts: Counter[tuple[int, str]]) -> None:
    """The history holds as many samples of each VM and bucket as the log ever did."""
    settled_s = world.now_ns // NS_PER_S - BUCKET_S - SETTLED_BUCKETS_S
    stored = {
        (start_s, vm_id): int(samples)
        for start_s, block in world.coordinator.buckets.items()
        for vm_id, samples in zip(block.vm_ids, block.samples, strict=True)
    }
    moved = {(bucket_start_s(at_ns), vm_id) for at_ns, vm_id, _, _ in world.moves.moved}  # two hosts' halves of a bucket are not added up
    for key in sorted((counts.keys() | stored.keys()) - moved):
        if key[0] <= settled_s and counts.get(key, 0) != stored.get(key, 0):
            start = (key[0] * NS_PER_S - world.start_ns) // BUCKET_NS
            world.violated(f"bucket {start} of {key[1]}: {counts.get(key, 0)} samples logged, {stored.get(key, 0)} in the history")


def _limited(value: int | None, most: int) -> int:
    return most if value is None or value == UNLIMITED else min(value, most)


def _grows(before: int, after: int) -> bool:
    return before != UNLIMITED and (after == UNLIMITED or after > before)
