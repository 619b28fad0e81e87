"""The reactive rule: local sizes from current use, on every 5 s sample. Pure; tuned, because predictive mode is measured against it.

Grow at once when use reaches `grow_at` of the limit, or when the limit itself was felt (throttled, short of memory, dropping): then use is
censored, demand unknown but larger, and the target climbs 25, 50, 100, 100 ... % over the limit on consecutive censored samples, so a
demand of 8x the limit is reached in four samples instead of ten. Otherwise the target is use x headroom: with 850 and 1250 permille a
growth ends at 80 % use, below the trigger, and does not repeat itself.
Shrink only to the largest demand of the whole sliding window x margin, when that lies more than 10 % below the limit, and only when the
window has been watched without a gap: what was not seen is not evidence. The same 80 % keeps a shrink from causing the next growth.
A shrink that follows a growth is a turn, and the guard allows few of them: it looks at a longer window (`turn_window_s`), because a turn
that the next busy minutes take back leaves the VM grown for hours. A shrink that continues a shrink is free and stays eager.
Under a live plan memory is corrected later and by less (`planned_memory_*`): the plan sizes it close to the need, a balloon shrinks in
small strides, and a growth by the usual headroom would have to be taken back stride by stride. CPU grows as early as ever, and by less
(`planned_cpu_headroom_permille`) where the host has little left: what it grew by too much costs a turn to take back, and few are left after
some hours.
vCPUs are added when the quota wanted passes vcpus x 1000; they are never removed, the quota takes their place.
Before the balloon grows, a memory.high of ours is lifted: pages given to a VM that its cgroup reclaims again would help nobody.
With `sustained` (nobody can be asked: link down) growth needs two samples in a row that want it: one odd reading must not move a host
that nobody watches. A VM short of memory (stalling, swapping, killing) does not wait for the second: its sample is a mean over 5 s
already, and memory has to be back within 10 s of the onset, of which the first sample may take 5 and the step the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from agent.acting.pressure import pressed, used
from shared.config import ReactiveConfig
from shared.model import VmSample
from shared.plan import StepKind
from shared.units import NS_PER_S, UNLIMITED

LEVERS: Final = (StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.NET_RX, StepKind.NET_TX)

# The window's maximum is kept per slot of a thirtieth of it (60 s of 30 min): at most 31 entries a lever.
SLOTS: Final = 30
# A hole in the samples longer than this share of the window restarts the evidence for shrinking.
GAP_PERMILLE: Final = 100
# Changes smaller than this are not worth a step.
SHRINK_DEAD_BAND_PERMILLE: Final = 100
CENSORED_CLIMB_PERMILLE: Final = (250, 500, 1000)
# Two samples, 5 to 10 s of wanting more: a burst that passes by itself is over by then.
SUSTAINED_SAMPLES: Final = 2


class Ask(msgspec.Struct, frozen=True):
    """What the rule wants: a value for one lever, and why."""

    kind: StepKind
    value: int
    grow: bool
    reason: str


class Track:
    """Sliding maximum of one lever's demand: a deque of (slot, maximum) with falling maxima, O(1) per sample."""

    __slots__ = ("_falling", "censored_run", "newest_ns", "since_ns", "wanting_run")

    def __init__(self) -> None:
        self._falling: deque[tuple[int, int]] = deque()
        self.since_ns = -1
        self.newest_ns = -1
        self.censored_run = 0
        self.wanting_run = 0  # samples in a row that wanted growth

    def observe(self, demand: int, window_ns: int, now_ns: int) -> None:
        """Take in one demand. Time running backwards or a gap restarts the evidence."""
        if self.newest_ns < 0 or not 0 <= now_ns - self.newest_ns <= window_ns * GAP_PERMILLE // 1000:
            self._falling.clear()
            self.since_ns = now_ns
        self.newest_ns = now_ns
        slot_ns = window_ns // SLOTS
        slot = now_ns // slot_ns
        falling = self._falling
        while falling and falling[-1][1] <= demand:
            falling.pop()
        if not falling or falling[-1][0] != slot:
            falling.append((slot, demand))
        while falling[0][0] < slot - SLOTS:
            falling.popleft()

    def peak(self, window_ns: int) -> int | None:
        """Largest demand of the window; None until the whole window has been watched."""
        if self.newest_ns - self.since_ns < window_ns or not self._falling:
            return None
        return self._falling[0][1]


class Demand:
    """What the rule remembers of one VM."""

    __slots__ = ("lasting", "tracks")

    def __init__(self) -> None:
        self.tracks = {kind: Track() for kind in LEVERS}
        self.lasting = {kind: Track() for kind in LEVERS}  # the same demand over the window of a turn, in coarser slots


@dataclass(frozen=True, slots=True)
class Situation:
    """One VM now: values in force (missing = not known) and bounds (floor, ceiling) by lever."""

    in_force: dict[StepKind, int]
    bounds: dict[StepKind, tuple[int, int]]
    vcpus_max: int
    net_max_bits_per_s: int
    ours: AbstractSet[StepKind] = frozenset()  # levers whose value in force may be of our making
    growing: AbstractSet[StepKind] = frozenset()  # levers whose last change was a growth: a shrink would be a turn
    scarce: AbstractSet[StepKind] = frozenset()  # levers of which the host has little left to promise


class LocalRule(Protocol):
    """What decides locally. The product has one, `ReactiveRule`; bench/league puts others in its place."""

    def asks(
        self, reading: VmSample, situation: Situation, demand: Demand, now_ns: int, *, planned: bool = False, sustained: bool = False
    ) -> list[Ask]:
        """As ReactiveRule.asks. `demand` is one and the same object for one VM."""


class ReactiveRule:
    """Turns samples into asks. The guard judges them like anybody else's."""

    def __init__(self, config: ReactiveConfig) -> None:
        self.config = config
        self._window_ns = config.shrink_window_s * NS_PER_S
        self._turn_window_ns = max(config.turn_window_s, config.shrink_window_s) * NS_PER_S

    def asks(
        self, reading: VmSample, situation: Situation, demand: Demand, now_ns: int, *, planned: bool = False, sustained: bool = False
    ) -> list[Ask]:
        """Take in one sample of one VM and say what it should get; vCPUs before the quota that needs them, memory.high before the balloon.

        `planned`: a live plan sizes this VM, close to its need on purpose. `sustained`: growth needs two samples in a
        row, but for a VM short of memory.
        """
        asks: list[Ask] = []
        for kind in LEVERS:
            track = demand.tracks[kind]
            ask = self._lever(kind, reading, situation, demand, now_ns, planned)
            track.wanting_run = track.wanting_run + 1 if ask is not None and ask.grow else 0
            if ask is None or (sustained and ask.grow and track.wanting_run < SUSTAINED_SAMPLES and not _short_of_memory(ask)):
                continue
            if kind is StepKind.MEMORY and ask.grow and _high_is_ours(situation):
                asks.append(Ask(StepKind.MEMORY_HIGH, UNLIMITED, True, ask.reason))
            if kind is StepKind.CPU_QUOTA and ask.grow:
                asks.extend(_with_vcpus(ask, situation))
            else:
                asks.append(ask)
        return asks

    def _lever(  # noqa: PLR0917  # private, and called once a lever and sample
        self, kind: StepKind, reading: VmSample, situation: Situation, demand: Demand, now_ns: int, planned: bool
    ) -> Ask | None:
        limit = _limit(kind, situation)
        use = used(reading, kind)
        if limit is None or limit <= 0:
            return None
        censored = pressed(reading, kind)
        track = demand.tracks[kind]
        track.censored_run = track.censored_run + 1 if censored else 0
        if use is None and not censored:
            return None
        use = use or 0
        # A censored sample proves a demand of at least the limit; what it would have been stays unknown.
        shown = max(use, limit) if censored else use
        track.observe(shown, self._window_ns, now_ns)
        demand.lasting[kind].observe(shown, self._turn_window_ns, now_ns)
        low, high = situation.bounds[kind]
        grow_at, headroom = self.config.grow_at_permille, self.config.headroom_permille
        if planned and kind is StepKind.MEMORY:
            grow_at, headroom = self.config.planned_memory_grow_at_permille, self.config.planned_memory_headroom_permille
        elif planned and kind is StepKind.CPU_QUOTA and kind in situation.scarce:
            headroom = self.config.planned_cpu_headroom_permille
        if censored or use * 1000 >= grow_at * limit:
            target = use * headroom // 1000
            if censored:
                climb = CENSORED_CLIMB_PERMILLE[min(track.censored_run, len(CENSORED_CLIMB_PERMILLE)) - 1]
                target = max(target, limit + limit * climb // 1000)
            target = min(max(target, low), high)
            # For CPU the comparison is with quota and vCPUs apart, in _with_vcpus.
            if target <= limit and kind is not StepKind.CPU_QUOTA:
                return None
            if kind is StepKind.MEMORY and reading.guest_oom_kills:
                return Ask(kind, target, True, "guest_oom")
            return Ask(kind, target, True, "pressure" if censored else "high_use")
        turns = kind in situation.growing
        peak = demand.lasting[kind].peak(self._turn_window_ns) if turns else track.peak(self._window_ns)
        if peak is None:
            return None
        target = max(low, peak * self.config.shrink_margin_permille // 1000)
        if target * 1000 < limit * (1000 - SHRINK_DEAD_BAND_PERMILLE):
            return Ask(kind, target, False, "low_use")
        return None


def _short_of_memory(ask: Ask) -> bool:
    """Asked for because memory was felt missing, not because much of it is used."""
    return ask.kind is StepKind.MEMORY and ask.reason in ("pressure", "guest_oom")


def _high_is_ours(situation: Situation) -> bool:
    """A memory.high that we set is in force; one that somebody else set is not ours to lift."""
    return StepKind.MEMORY_HIGH in situation.ours and situation.in_force.get(StepKind.MEMORY_HIGH, UNLIMITED) != UNLIMITED


def _limit(kind: StepKind, situation: Situation) -> int | None:
    """The limit that use runs into: an unlimited quota ends at the vCPUs, an unlimited NIC at its maximum."""
    value = situation.in_force.get(kind)
    if kind is not StepKind.CPU_QUOTA:
        return situation.net_max_bits_per_s if value == UNLIMITED else value
    vcpus = situation.in_force.get(StepKind.VCPUS)
    if vcpus is None:
        return None if value == UNLIMITED else value
    return vcpus * 1000 if value == UNLIMITED or value is None else min(value, vcpus * 1000)


def _with_vcpus(ask: Ask, situation: Situation) -> list[Ask]:
    vcpus, quota = situation.in_force.get(StepKind.VCPUS), situation.in_force.get(StepKind.CPU_QUOTA)
    asks = []
    if vcpus is not None and ask.value > vcpus * 1000 and vcpus < situation.bounds[StepKind.VCPUS][1]:
        wanted = min(-(-ask.value // 1000), situation.bounds[StepKind.VCPUS][1])
        asks.append(Ask(StepKind.VCPUS, wanted, True, ask.reason))
    if quota is not None and quota != UNLIMITED and ask.value > quota:
        asks.append(ask)
    return asks
