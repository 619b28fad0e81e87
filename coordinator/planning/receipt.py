"""Receipts: why a VM got what it got, and enough to compute the same steps again.

`inputs["facts"]` and `inputs["slots"]` are what the planner decided from; `replay` runs the same code on them. Everything in `inputs`
is plain JSON (unknown = null).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from coordinator.model import ForecastBlock, NoForecast, Receipt, VmSize, VmState
from coordinator.planning.diff import Facts, changes_of, numbers
from coordinator.planning.order import Slot
from coordinator.sizing.levers import SHORT, WITH_DISK
from coordinator.sizing.policy import SizingPolicy
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode

CODES: Final = frozenset(code.value for code in RefusalCode)
# Standing facts of a VM: true in every cycle, so no reason for a receipt of their own.
STANDING: Final = frozenset({RefusalCode.NOT_CAPABLE.value})


def build_receipt(
    vm: VmState,
    size: VmSize,
    facts: Facts,
    slots: Sequence[Slot],
    forecast: ForecastBlock,
    *,
    row: int | None,
    policy: SizingPolicy,
    epoch: int,
    sequence: int,
    now_ns: int,
    shadow: bool,
) -> Receipt:
    """The receipt of one VM's decision. `row`: the VM's row in the forecast, None = it has none."""
    receipt_id = f"{epoch}-{forecast.issued_s}-{vm.domain.vm_id}"
    inputs: dict[str, object] = {
        "epoch": epoch,
        "sequence": sequence,
        "now_ns": now_ns,
        "receipt_id": receipt_id,
        "facts": msgspec.to_builtins(facts),
        "slots": [[slot.n, slot.not_before_ns, slot.deadline_ns, slot.change.kind.value, slot.change.value] for slot in slots],
        "forecast": {} if row is None else forecast_inputs(forecast, row, policy, facts.priority),
        "demand_now": dict(zip(SHORT, numbers(vm.demand_now), strict=True)),
        "censored_now": dict(zip(SHORT, numbers(vm.censored_now), strict=True)),
        "working_set_bytes": vm.working_set_bytes if math.isfinite(vm.working_set_bytes) else None,
        "pressured": vm.pressured,
        "binding": binding(size),
        "shadow_price": dict(size.shadow_price),
    }
    return Receipt(
        id=receipt_id,
        vm_id=vm.domain.vm_id,
        host_id=size.host_id,
        issued_s=forecast.issued_s,
        shadow=shadow,
        steps=steps_of(facts, inputs),
        inputs=inputs,
        trail=size.trail,
        refused=refused(size),
    )


def forecast_inputs(forecast: ForecastBlock, row: int, policy: SizingPolicy, priority: int) -> dict[str, object]:
    """What the forecast said, by resource: mean and stddev of the first step, model, coverage, and the quantile that sizes."""
    found: dict[str, object] = {}
    for r in WITH_DISK:
        mean, stddev, coverage = numbers((forecast.mean[row, r, 0], forecast.stddev[row, r, 0], forecast.coverage[row, r]))
        found[SHORT[r]] = {
            "mean": mean,
            "stddev": stddev,
            "coverage": coverage,
            "model": forecast.models[int(forecast.model[row, r])] if 0 <= forecast.model[row, r] < len(forecast.models) else None,
            "reason": NoForecast(int(forecast.reason[row, r])).name,
            "quantile": min(forecast.levels[-1], policy.size_quantile[priority] + policy.quantile_offset[r]),
            "means": numbers(forecast.mean[row, r]),
        }
    return found


def refused(size: VmSize) -> tuple[str, ...]:
    """Alternatives not taken: the trail's lines that begin with a refusal code."""
    return tuple(line for line in size.trail if line.partition(":")[0] in CODES)


def noteworthy(size: VmSize, slots: Sequence[Slot]) -> bool:
    """True when there is something to explain: a step, or an alternative refused for more than a standing reason."""
    return bool(slots) or any(line.partition(":")[0] not in STANDING for line in refused(size))


def binding(size: VmSize) -> str:
    """What limited the size: the host's capacity, a ceiling, or the forecast itself."""
    if size.clipped:
        return "host_capacity"
    return "ceiling" if any(line.startswith(RefusalCode.ABOVE_CEILING) for line in size.trail) else "forecast"


def replay(receipt: Receipt) -> tuple[Step, ...]:
    """Compute the receipt's steps again from its inputs alone (also after a round trip through JSON).

    Raises msgspec.ValidationError when the inputs are not those of a receipt.
    """
    return steps_of(msgspec.convert(receipt.inputs["facts"], Facts, strict=False), receipt.inputs)


def steps_of(facts: Facts, inputs: dict[str, Any]) -> tuple[Step, ...]:
    """The steps that follow from facts, in the plan's order; each slot picks one of the VM's changes by kind and value."""
    found = {(item.kind, item.value): item for item in changes_of(facts)}
    steps = []
    for n, not_before_ns, deadline_ns, kind, value in inputs["slots"]:
        item = found[StepKind(kind), value]
        steps.append(
            Step(
                id=f"{inputs['epoch']}-{inputs['sequence']}-{n}",
                vm_id=facts.vm_id,
                kind=item.kind,
                value=item.value,
                before=item.before,
                reason=item.reason,
                receipt_id=inputs["receipt_id"],
                not_before_ns=not_before_ns,
                deadline_ns=deadline_ns,
            )
        )
    return tuple(steps)
