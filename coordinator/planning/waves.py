"""A running migration plan as a state machine: (state, event, now) → (state, instructions). No clock, no sockets; a document that lasts.

Moves run stage by stage, in waves: a wave is as much as may go wrong at once (VMs, hosts, racks, clients, and the share of one client's
VMs). A move is over when its agent has verified it, the VM is seen on its target and has settled there without more strain than before.
The next wave begins when every move of this one is over. A move that failed or was undone, or a VM that fares worse than before, is a
regression: the first one leaves out what hangs on it, the second ends the plan. What failed is remembered for a while, pair by pair, so
that the next placement does not ask for it again.

Invariant: a move is sent at most once for each try, and only after the state that says so is durable; a state read back after a restart
sends nothing again: what was in flight ends by its outcome, by where the VM is seen, or (neither, for too long) as lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from coordinator.migration_plan import OVER, MigrationPlan, Phase, PlannedMove, Status
from shared.plan import Outcome, OutcomeState
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

# Refusals that say nothing about VM or target and may be gone a moment later.
PASSING: Final = frozenset(
    {
        *(RefusalCode.MIGRATION_BUSY, RefusalCode.VM_BUSY, RefusalCode.SEQUENCE_OLD, RefusalCode.RATE_LIMITED, RefusalCode.STEP_EXPIRED),
        *(RefusalCode.READING_STALE, RefusalCode.EPOCH_OLD, RefusalCode.PLAN_STALE, RefusalCode.PRESSURE_VETO, RefusalCode.BACKING_OFF),
        *(RefusalCode.CIRCUIT_OPEN, RefusalCode.QUARANTINED),
    }
)
# Somebody said stop: nobody's fault, and no reason to try again.
CALLED_OFF: Final = frozenset({RefusalCode.PAUSED, RefusalCode.MODE_FORBIDS})


# Events


class Approved(msgspec.Struct, frozen=True, kw_only=True):
    """An operator (or the setting) lets the plan run."""

    actor: str


class Aborted(msgspec.Struct, frozen=True, kw_only=True):
    """An operator ends the plan."""

    actor: str


class StepTold(msgspec.Struct, frozen=True, kw_only=True):
    """A host's outcome of a MIGRATE step."""

    outcome: Outcome


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet as it is: where VMs are seen, hosts that can act, and how strained VMs are (0..1, absent = not known)."""

    at: Mapping[str, str]
    acting: frozenset[str]
    awake: frozenset[str]
    strain: Mapping[str, float] = {}
    client_vms: Mapping[str, int] = {}


Event = Approved | Aborted | StepTold | Looked


# Instructions


class SendMove(msgspec.Struct, frozen=True, kw_only=True):
    """Send a MIGRATE step to the source; `number` is the move's place in the plan."""

    number: int
    step_id: str
    deadline_ns: int


class Withdraw(msgspec.Struct, frozen=True, kw_only=True):
    """Take back what this host has not begun."""

    host_id: str


class Remember(msgspec.Struct, frozen=True, kw_only=True):
    """Do not ask for this again for a while."""

    vm_id: str
    host_id: str
    until_ns: int
    why: str


class Cool(msgspec.Struct, frozen=True, kw_only=True):
    """This VM has moved: it stays for a while."""

    vm_id: str
    until_ns: int


class Replan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan ended otherwise than planned: ask placement anew."""

    why: str


Instruction = SendMove | Withdraw | Remember | Cool | Replan
Turn = tuple[MigrationPlan, list[Instruction]]


def advance(plan: MigrationPlan, event: Event, now_ns: int) -> Turn:
    """One event. The new state must be durable before its instructions are carried out."""
    if plan.over:
        return plan, []
    match event:
        case Approved():
            if plan.status is not Status.PROPOSED:
                return plan, []
            return msgspec.structs.replace(plan, status=Status.RUNNING, actor=event.actor), []
        case Aborted():
            return _abort(plan, event.actor, now_ns)
        case StepTold():
            return _told(plan, event.outcome, now_ns)
        case Looked():
            return _look(plan, event, now_ns)


def _abort(plan: MigrationPlan, actor: str, now_ns: int) -> Turn:
    """What is in flight ends by itself; what waits is left out."""
    hosts = sorted({move.source for move in plan.moves if move.phase is Phase.SENT})
    moves = _skip(plan.moves, lambda move: move.phase in (Phase.WAITING, Phase.QUEUED), f"aborted by {actor}", now_ns)
    plan = msgspec.structs.replace(plan, moves=moves, status=Status.STOPPING, actor=actor, why=f"aborted by {actor}")
    plan, more = _finish(plan, now_ns)
    return plan, [*(Withdraw(host_id=host) for host in hosts), *more]


def _told(plan: MigrationPlan, outcome: Outcome, now_ns: int) -> Turn:
    found = next((n for n, move in enumerate(plan.moves) if move.step_id == outcome.step.id and move.phase is Phase.SENT), None)
    if found is None:
        return plan, []  # of an earlier try, told twice, or already seen on its target
    move = plan.moves[found]
    if outcome.state is OutcomeState.VERIFIED:
        return _with(plan, found, phase=Phase.SETTLING, changed_ns=now_ns, why=outcome.detail), []
    detail = f"{outcome.state}{f' ({outcome.code})' if outcome.code else ''}: {outcome.detail}"
    passing = outcome.state is OutcomeState.REFUSED and outcome.code in PASSING
    if passing and plan.status is Status.RUNNING and move.tries < plan.patience.tries:
        return _with(plan, found, phase=Phase.QUEUED, changed_ns=now_ns, why=f"again after {detail}"), []
    called_off = outcome.code in CALLED_OFF or passing
    regression = outcome.state in (OutcomeState.FAILED, OutcomeState.UNDONE) and not called_off
    return _fail(plan, found, detail, now_ns, regression=regression, remember=not called_off)


def _look(plan: MigrationPlan, seen: Looked, now_ns: int) -> Turn:
    """Time passed: see what has arrived and settled, what is lost, and begin what may begin."""
    out: list[Instruction] = []
    for n in range(len(plan.moves)):
        if plan.moves[n].phase in (Phase.SENT, Phase.SETTLING):
            plan, more = _watch(plan, n, seen, now_ns)
            out += more
    if plan.status is Status.RUNNING:
        plan = _expire(plan, seen, now_ns)
        plan = _open_wave(plan, seen, now_ns)
        plan, more = _send(plan, seen, now_ns)
        out += more
    plan, more = _finish(plan, now_ns)
    return plan, out + more


def _watch(plan: MigrationPlan, n: int, seen: Looked, now_ns: int) -> Turn:
    move, patience = plan.moves[n], plan.patience
    here = seen.at.get(move.vm_id)
    waited_s = (now_ns - (move.sent_ns if move.phase is Phase.SENT else move.changed_ns)) / NS_PER_S
    if move.phase is Phase.SENT:
        # an outcome is on its way: a lost one (a coordinator killed before it was stored) shows as a VM that stays on its target
        if here == move.target and waited_s > move.seconds + patience.seen_s:
            return _with(plan, n, phase=Phase.SETTLING, changed_ns=now_ns, why="seen on its target; no outcome came"), []
        if waited_s > patience.begin_s + 2 * move.seconds + patience.lost_s and move.source in seen.acting:
            return _fail(plan, n, f"no word of it for {waited_s:.0f} s", now_ns, phase=Phase.LOST, regression=False)
        return plan, []
    if here != move.target:
        if waited_s > patience.seen_s and move.target in seen.acting:
            return _fail(plan, n, f"verified, but seen on {here or 'no host'} after {waited_s:.0f} s", now_ns, regression=True)
        return plan, []
    strain = seen.strain.get(move.vm_id)
    if waited_s < patience.settle_s or (strain is None and waited_s < patience.seen_s + patience.settle_s):
        return plan, []
    if strain is not None and strain > move.strain + WORSE:
        why = f"arrived, but waits {strain:.0%} of the time on {move.target}, {move.strain:.0%} before"
        return _fail(plan, n, why, now_ns, regression=True)
    until_ns = now_ns + int(patience.cooldown_s * NS_PER_S)
    return _with(plan, n, phase=Phase.DONE, changed_ns=now_ns), [Cool(vm_id=move.vm_id, until_ns=until_ns)]


WORSE: Final = 0.10  # of the time, by which a VM may wait more than before


def _fail(
    plan: MigrationPlan, n: int, why: str, now_ns: int, *, regression: bool, remember: bool = True, phase: Phase = Phase.FAILED
) -> Turn:
    move, patience = plan.moves[n], plan.patience
    plan = _with(plan, n, phase=phase, changed_ns=now_ns, why=why)
    plan = msgspec.structs.replace(plan, moves=_skip_dependants(plan.moves, n, now_ns), regressions=plan.regressions + regression)
    out: list[Instruction] = []
    if remember:
        until_ns = now_ns + int(patience.failed_s * NS_PER_S)
        out.append(Remember(vm_id=move.vm_id, host_id=move.target, until_ns=until_ns, why=why))
    if plan.regressions >= patience.regressions and plan.status is Status.RUNNING:
        why = f"{plan.regressions} regressions, the last: {move.vm_id}: {why}"
        moves = _skip(plan.moves, lambda each: each.phase in (Phase.WAITING, Phase.QUEUED), "the plan was stopped", now_ns)
        hosts = sorted({each.source for each in moves if each.phase is Phase.SENT})
        plan = msgspec.structs.replace(plan, moves=moves, status=Status.STOPPING, why=why)
        out += [Withdraw(host_id=host) for host in hosts]
    return plan, out


def _skip_dependants(moves: tuple[PlannedMove, ...], failed: int, now_ns: int) -> tuple[PlannedMove, ...]:
    """Leave out what counted on a move that did not happen, and what counted on that; block mates that have not begun too."""
    gone, block = {failed}, moves[failed].block
    kept = list(moves)
    for n, move in enumerate(moves):
        mate = block >= 0 and move.block == block and move.stage == moves[failed].stage
        if move.phase in (Phase.WAITING, Phase.QUEUED) and (mate or not gone.isdisjoint(move.after)):
            gone.add(n)
            kept[n] = msgspec.structs.replace(move, phase=Phase.SKIPPED, changed_ns=now_ns, why=f"counted on {moves[failed].vm_id}")
    return tuple(kept)


def _expire(plan: MigrationPlan, seen: Looked, now_ns: int) -> MigrationPlan:
    """Leave out what cannot be any more, with what hangs on it: its time has gone, its VM is elsewhere, its hosts do not answer."""
    stage = min((move.stage for move in plan.moves if move.phase not in OVER), default=0)
    stalled = plan.stalled_ns > 0 and now_ns - plan.stalled_ns > int(plan.patience.lost_s * NS_PER_S)
    for n, move in enumerate(plan.moves):
        if plan.moves[n].phase not in (Phase.WAITING, Phase.QUEUED):
            continue
        here = seen.at.get(move.vm_id)
        why = ""
        if now_ns > move.latest_ns:
            why = "it could not begin before its ramp"
        elif move.stage == stage and here != move.source:
            why = f"it is on {here} by now" if here is not None else f"it no longer runs on {move.source}"
        elif stalled and move.stage == stage and now_ns >= move.not_before_ns:
            why = f"{move.source} or {move.target} did not answer for {plan.patience.lost_s:.0f} s"
        if why:
            plan = _with(plan, n, phase=Phase.SKIPPED, changed_ns=now_ns, why=why)
            plan = msgspec.structs.replace(plan, moves=_skip_dependants(plan.moves, n, now_ns))
    return plan


def _open_wave(plan: MigrationPlan, seen: Looked, now_ns: int) -> MigrationPlan:
    """Where no wave runs: the next moves of the first open stage that are due, as many as the limits allow; blocks whole."""
    if any(move.phase in (Phase.SENT, Phase.SETTLING) for move in plan.moves):
        return _stalled(plan, 0)
    if any(_may_begin(move, seen, now_ns) for move in plan.moves if move.phase is Phase.QUEUED):
        return _stalled(plan, 0)
    if any(move.phase is Phase.QUEUED for move in plan.moves):
        return _stalled(plan, now_ns)
    stage = min((move.stage for move in plan.moves if move.phase is Phase.WAITING), default=None)
    due = [n for n, move in enumerate(plan.moves) if move.phase is Phase.WAITING and move.stage == stage and _may_begin(move, seen, now_ns)]
    blocks: dict[int, list[int]] = {}
    for n in due:
        blocks.setdefault(plan.moves[n].block if plan.moves[n].block >= 0 else -1 - n, []).append(n)
    taken: list[int] = []
    for block, members in blocks.items():
        whole = block < 0 or len(members) == sum(m.block == block and m.phase is Phase.WAITING and m.stage == stage for m in plan.moves)
        if whole and _within(plan, [*taken, *members], seen.client_vms, alone=not taken):
            taken += members
    if not taken:
        begun = [move for move in plan.moves if move.phase is Phase.WAITING and move.stage == stage and now_ns >= move.not_before_ns]
        return _stalled(plan, now_ns if begun else 0)
    moves = list(plan.moves)
    for n in taken:
        moves[n] = msgspec.structs.replace(moves[n], phase=Phase.QUEUED, changed_ns=0)
    return msgspec.structs.replace(plan, moves=tuple(moves), wave=plan.wave + 1, stalled_ns=0)


def _stalled(plan: MigrationPlan, now_ns: int) -> MigrationPlan:
    """Note since when nothing could begin; 0 = something can."""
    since_ns = 0 if now_ns == 0 else plan.stalled_ns or now_ns
    return plan if since_ns == plan.stalled_ns else msgspec.structs.replace(plan, stalled_ns=since_ns)


def _may_begin(move: PlannedMove, seen: Looked, now_ns: int) -> bool:
    here = seen.at.get(move.vm_id) == move.source
    return here and now_ns >= move.not_before_ns and move.source in seen.acting and move.target in seen.awake


def _within(plan: MigrationPlan, numbers: list[int], client_vms: Mapping[str, int], *, alone: bool) -> bool:
    """Whether a wave of these moves keeps to the limits. A block by itself may pass those that its size alone breaks."""
    limits, moves = plan.limits, [plan.moves[n] for n in numbers]
    if len(moves) > limits.vms:
        return False
    shares = Counter(move.client for move in moves)
    if any(count > max(1, int(limits.client_share * client_vms.get(client, 0))) for client, count in shares.items()):
        return alone and (len(moves) == 1 or moves[0].block >= 0)
    touched = {host for move in moves for host in (move.source, move.target)}
    racks = {rack for move in moves for rack in move.racks}
    kept = len(touched) <= limits.hosts and len(racks) <= limits.racks and len(shares) <= limits.clients
    return kept or (alone and (len(moves) == 1 or moves[0].block >= 0))


def _send(plan: MigrationPlan, seen: Looked, now_ns: int) -> Turn:
    out: list[Instruction] = []
    leaving = Counter(move.source for move in plan.moves if move.phase is Phase.SENT)
    coming = Counter(move.target for move in plan.moves if move.phase is Phase.SENT)
    for n, move in enumerate(plan.moves):
        if move.phase is not Phase.QUEUED or now_ns < move.changed_ns + int(plan.patience.retry_s * NS_PER_S) * (move.tries > 0):
            continue
        busy = leaving[move.source] >= plan.limits.per_source or coming[move.target] >= plan.limits.per_target
        if busy or not _may_begin(move, seen, now_ns):
            continue
        leaving[move.source] += 1
        coming[move.target] += 1
        step_id = f"{plan.id}-{n}-{move.tries + 1}"
        deadline_ns = min(now_ns + int(plan.patience.begin_s * NS_PER_S), max(move.latest_ns, now_ns + NS_PER_S))
        strain = seen.strain.get(move.vm_id, 0.0)
        sent = {"phase": Phase.SENT, "tries": move.tries + 1, "step_id": step_id, "sent_ns": now_ns, "changed_ns": now_ns}
        plan = _with(plan, n, **sent, strain=strain)
        out.append(SendMove(number=n, step_id=step_id, deadline_ns=deadline_ns))
    return plan, out


def _finish(plan: MigrationPlan, now_ns: int) -> Turn:
    """End the plan where nothing of it is open; where something did not happen, ask for another."""
    phases = Counter(move.phase for move in plan.moves)
    if plan.status not in (Status.RUNNING, Status.STOPPING) or any(phase not in OVER for phase in phases):
        return plan, []
    if plan.status is Status.STOPPING:
        status = Status.ABORTED if plan.why.startswith("aborted") else Status.STOPPED
        return msgspec.structs.replace(plan, status=status), [] if status is Status.ABORTED else [Replan(why=plan.why)]
    failed = sum(phases[phase] for phase in (Phase.FAILED, Phase.SKIPPED, Phase.LOST))
    why = f"{phases[Phase.DONE]} of {len(plan.moves)} moves done"
    return msgspec.structs.replace(plan, status=Status.DONE, why=why), [Replan(why=why)] if failed else []


def _skip(moves: Iterable[PlannedMove], which: Callable[[PlannedMove], bool], why: str, now_ns: int) -> tuple[PlannedMove, ...]:
    return tuple(msgspec.structs.replace(move, phase=Phase.SKIPPED, changed_ns=now_ns, why=why) if which(move) else move for move in moves)


def _with(plan: MigrationPlan, n: int, **changes: object) -> MigrationPlan:
    moves = list(plan.moves)
    moves[n] = msgspec.structs.replace(moves[n], **changes)
    return msgspec.structs.replace(plan, moves=tuple(moves))
