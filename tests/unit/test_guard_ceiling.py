"""A shrink from no limit at all ends below the ceiling, even where use and its margin would ask for more."""

from __future__ import annotations

import pytest

from agent.acting.guard import Guard, View
from shared.config import GuardConfig
from shared.model import Domain, Policy, VmSample
from shared.plan import Step, StepKind
from shared.units import GIB, NS_PER_S, UNLIMITED

NOW_NS = 1_795_219_200 * NS_PER_S


@pytest.mark.parametrize(("ceiling", "most"), [(None, 4000), (3900, 3900)])
def test_a_shrink_from_unlimited_respects_the_ceiling(ceiling: int | None, most: int) -> None:
    domain = Domain(vm_id="v", name="v", vcpus_max=4, memory_max_bytes=GIB, policy=Policy(cpu_ceiling_millicores=ceiling))
    reading = VmSample(cpu_used_millicores=3850, cpu_throttled_permille=0)  # with the margin of a tenth: 4235
    view = View(domain=domain, in_force=UNLIMITED, vcpus=4, reading=reading, reading_at_ns=NOW_NS)
    step = Step(id="s", vm_id="v", kind=StepKind.CPU_QUOTA, value=1000, deadline_ns=NOW_NS + 60 * NS_PER_S)
    verdict = Guard(GuardConfig()).check(step, view, NOW_NS)
    assert verdict.value == most
