"""`tidegate-agent` as a process that also gets one operator's order from a file: `python ordered_agent.py CONFIG ORDER`.

The order (JSON of shared.plan.Step) is put into a plan once the agent has read the VM; nothing else differs from `tidegate-agent run`.
An empty ORDER gives none.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from agent import events as ev
from agent.service import AgentService
from shared.config import AGENT_PREFIX, AgentConfig, load
from shared.plan import Plan, Step
from shared.units import NS_PER_S


async def main(config: AgentConfig, step: Step | None) -> None:
    service = AgentService(config)
    running = asyncio.create_task(service.run())
    if step is not None:
        while not (readings := {vm.vm_id: vm for vm in service.core.vms()}) or step.kind not in readings[step.vm_id].in_force:
            if running.done():
                break
            await asyncio.sleep(0.05)
        now = service.clock.wall_ns()
        step = msgspec.structs.replace(step, before=service.core.in_force(step.vm_id)[step.kind], deadline_ns=now + 300 * NS_PER_S)
        plan = Plan(host_id=config.host_id, epoch=1, sequence=now // 1000, issued_ns=now, deadline_ns=step.deadline_ns, steps=(step,))
        service.handle(ev.PlanArrived(plan=plan))
    await running


if __name__ == "__main__":
    order = Path(sys.argv[2]).read_bytes() if sys.argv[2] else b""
    settings = load(Path(sys.argv[1]), AgentConfig, {}, AGENT_PREFIX)
    asyncio.run(main(settings, msgspec.json.decode(order, type=Step) if order else None))
