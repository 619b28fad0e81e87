"""What the agent's process knows of its host just now: written by the service, read by the control socket and the exporter.

Invariant: only the event loop's thread touches it. What is not known yet is None or empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version

from agent.core import AgentCore
from agent.link.spool import Spool
from agent.ports import RawHost
from agent.sampling.detail import VmDetail, derive_detail
from agent.service.calls import BoundedCalls
from shared.clock import Clock
from shared.config import AgentConfig
from shared.errors import Refusal
from shared.model import Domain, HostSample
from shared.refusal import RefusalCode


@dataclass(kw_only=True)
class Picture:
    """Live state of one agent process."""

    config: AgentConfig
    clock: Clock
    core: AgentCore
    calls: BoundedCalls
    spool: Spool
    domains: tuple[Domain, ...] = ()
    sample: HostSample | None = None
    raw: tuple[RawHost | None, RawHost] | None = None  # the round before the newest one, and that one
    rounds: int = 0
    round_seconds: float | None = None  # real time that the newest round took
    period_s: float = 0.0  # to the next round; above the configured one while the host starves
    failures: dict[str, str] = field(default_factory=dict)  # of the newest round: collector or VM -> what went wrong
    clock_offset_ms: float | None = None  # coordinator's clock less ours, when it last said Welcome
    settings_error: str = ""  # why the newest reload was refused
    version: str = field(default_factory=lambda: version("tidegate"))

    def vm_id(self, name: str) -> str:
        """Id of a VM by id or name. Raises Refusal(UNKNOWN_VM)."""
        found = next((domain.vm_id for domain in self.domains if name in (domain.vm_id, domain.name)), None)
        if found is None:
            raise Refusal(RefusalCode.UNKNOWN_VM, f"VM {name!r}: not on this host; `tidegate-agent vms` lists them")
        return found

    def details(self) -> dict[str, VmDetail]:
        """VM -> what is known of it and not shipped, derived when somebody asks: most rounds nobody does."""
        return derive_detail(*self.raw) if self.raw is not None else {}

    def paused_by(self) -> tuple[str, ...]:
        """Who holds the kill switch; empty = nobody."""
        return self.core.paused_by

    def summary(self, *, linked: bool) -> str:
        """One line for `systemctl status`; `linked`: there is a coordinator to be connected to."""
        held = self.paused_by()
        state = f"paused by {', '.join(held)}" if held else f"mode {self.core.mode}"
        link = (", coordinator connected" if self.core.link_up else ", no coordinator") if linked else ""
        return f"{state}, {len(self.domains)} VMs, {len(self.calls.stuck)} quarantined{link}"
