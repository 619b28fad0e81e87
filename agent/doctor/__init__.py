"""`tidegate-agent doctor`: what an agent needs of this machine, checked one by one, each with how to mend it.

Every check only looks (traffic control is tried in a network namespace of its own that vanishes). A check that fails in an unforeseen way
is itself a finding: a doctor that dies says nothing. FAIL = the agent cannot do its work; WARN = it works, with less.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from agent.doctor import agent as doctor_agent
from agent.doctor import host as doctor_host
from agent.doctor import shaping as doctor_shaping
from agent.doctor.finding import Check, Finding, fail, ok
from shared.config import AGENT_PREFIX, AgentConfig, load
from shared.errors import ConfigError

CHECK_DEADLINE_S: Final = 15.0  # a libvirtd that hangs must not hang its doctor


def examine(path: Path | None, env: Mapping[str, str]) -> list[Finding]:
    """Every finding, in the order of the checks. Without a valid configuration the built-in defaults are examined."""
    found = []
    try:
        config = load(path, AgentConfig, env, AGENT_PREFIX)
        found.append(ok("config", f"{path or 'built-in defaults'}: valid"))
    except ConfigError as error:
        found.append(fail("config", str(error), "correct it; `tidegate-agent config check` says when it is right"))
        config = AgentConfig(host_id="unknown")
    for name, check in checks(config):
        found += _run(name, check, config)
    return found


def checks(config: AgentConfig) -> tuple[tuple[str, Check], ...]:
    """Name and function of every check that concerns this configuration."""
    own: tuple[tuple[str, Check], ...] = (
        ("agent", doctor_agent.running),
        ("certificates", doctor_agent.certificates),
        ("clock", doctor_agent.clock),
        ("state", doctor_agent.state),
        ("journal", doctor_agent.journal),
        ("pause", doctor_agent.pause),
    )
    if config.hypervisor != "libvirt":
        return own
    return (
        ("kernel", doctor_host.kernel),
        ("psi", doctor_host.pressure),
        ("cgroup", doctor_host.cgroups),
        ("libvirt", doctor_host.libvirt),
        ("shaping", doctor_shaping.shaping),
        ("perf", doctor_host.perf),
        *own,
    )


def _run(name: str, check: Check, config: AgentConfig) -> list[Finding]:
    # A thread each: what hangs stays behind (the process leaves it when it ends), the next check does not wait for it.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"doctor-{name}")
    try:
        return thread.submit(lambda: list(check(config))).result(CHECK_DEADLINE_S)
    except TimeoutError:
        return [fail(name, f"no answer within {CHECK_DEADLINE_S:g} s", "what is asked here hangs: see its own log")]
    except Exception as error:  # noqa: BLE001  # whatever this machine does to a check, the others are still to be heard
        return [fail(name, f"could not be checked: {type(error).__name__}: {error}", "report this, with the text above")]
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
