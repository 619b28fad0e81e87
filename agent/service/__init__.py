"""The agent as a process: wiring, timers, bounded calls, what the core's instructions do, and the doors that its owner uses.

`process` is where to begin: it opens the host, owns the core, and starts everything else.
"""

from agent.service.process import AgentService, run_agent

__all__ = ["AgentService", "run_agent"]
