"""The real agent, killed by SIGKILL at its failpoints while it changes a real guest: libvirt and tc show before or after, never between.

Each case runs the agent with one order and one armed failpoint, waits for its death, starts it again unarmed, and looks at the lever with
libvirt and tc, past the agent and its adapters, two sampling cycles after the new process is up. What the guest itself does (onlining a
vCPU, moving its balloon) may take longer than that on a machine without hardware virtualization: the hypervisor's target counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from real_host import Guest, RealHost, wait_for

from agent.acting.journal import Journal
from agent.adapters.libvirt_host import open_libvirt_host
from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from agent.events import Closed
from shared.control import ask
from shared.errors import HostError
from shared.failpoint import VARIABLE
from shared.plan import OutcomeState, Step, StepKind
from shared.units import MBIT, MIB

pytestmark = [pytest.mark.realhost, pytest.mark.slow, pytest.mark.timeout(900)]

PERIOD_S = 2
LATE_S = 20  # two cycles resolve a step; what else runs here may hold them up
Q, M, V, RX, TX, D = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS, StepKind.NET_RX, StepKind.NET_TX, StepKind.DISK_BYTES
# Quotas that a guest at rest never feels, or the local rule would raise them on its own.
BEFORE = {Q: 900, RX: 20 * MBIT, TX: 20 * MBIT, D: 20 * MIB, M: 104 * MIB}
AFTER = {Q: 1200, RX: 30 * MBIT, TX: 30 * MBIT, D: 30 * MIB, M: 108 * MIB}
EVERYWHERE = (
    *("journal.intent.before", "journal.intent.after", "submit.before", "submit.after"),
    *("read_back.before", "read_back.after", "journal.closed.before", "journal.closed.after"),
)
# Where the kinds differ is the submit; the rest of the way is the same code for all.
AROUND = ("journal.intent.after", "submit.after", "read_back.after")
CASES = [
    *((Q, place) for place in EVERYWHERE),
    *((kind, place) for kind in (M, D) for place in AROUND),
    *((kind, place) for kind in (RX, TX) for place in (*AROUND, "shaper.between")),
    *((V, place) for place in AROUND),  # a vCPU that was added stays: TCG cannot take it away again
]


@pytest.fixture(scope="module")
def guest(real_host: RealHost) -> Iterator[Guest]:
    made = real_host.define_guest("killed", vcpus=1, vcpus_max=4, memory_mib=104, memory_max_mib=160, ip="10.81.0.2/24", disks=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hypervisor(real_host: RealHost) -> Iterator[LibvirtHypervisor]:
    opened, _ = open_libvirt_host(libvirt_uri=real_host.uri, network_namespace=real_host.netns)
    with contextlib.closing(opened):
        yield opened


class Agent:
    """One life of the agent's process."""

    def __init__(self, home: Path, host: RealHost, order: Step | None = None, failpoint: str = "") -> None:
        self.socket = home / "s"
        config, given = home / "agent.toml", home / "order.json"
        config.write_text(
            f'host_id = "killed-1"\nstate_dir = "{home}"\nsocket_path = "{self.socket}"\nlibvirt_uri = "{host.uri}"\n'
            f'network_namespace = "{host.netns}"\nsample_period_s = {PERIOD_S}\ndefault_mode = "reactive"\n'
            f'pause_file = "{home / "paused"}"\n[guard]\nmemory_floor_bytes = {64 * MIB}\nstep_timeout_s = 120\n'
        )
        if order is not None:
            given.write_bytes(msgspec.json.encode(order))
        program = Path(__file__).parent / "ordered_agent.py"
        with (home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, program, config, given if order is not None else ""],
                env={**os.environ, VARIABLE: failpoint},
                stdout=log,
                stderr=log,
            )

    def up(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.returncode}")
        with contextlib.suppress(HostError):
            return bool(ask(self.socket, "status")["sampling_rounds"])
        return False

    def in_flight(self) -> int:
        return int(ask(self.socket, "status")["steps_in_flight"])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def shown(guest: Guest, kind: StepKind) -> int:
    """The lever as libvirt and tc have it, without our adapters."""
    domain = guest.domain
    if kind is V:
        return int(domain.vcpusFlags(1))
    if kind is Q:
        given = domain.schedulerParameters()
        return int(given["vcpu_quota"] * domain.vcpusFlags(1) * 1000 // given["vcpu_period"])
    if kind is M:
        return int(domain.memoryStats()["actual"]) * 1024
    if kind is D:
        return int(domain.blockIoTune("vda")["total_bytes_sec"])
    interface = guest.tap if kind is RX else ifb_of(guest)
    command = ["tc", "-n", guest.host.name, "class", "show", "dev", interface]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    units = {"": 1, "K": 1000, "M": MBIT, "G": 1000 * MBIT}
    ceilings = [int(number) * units[unit] for number, unit in re.findall(r"ceil (\d+)([KMG]?)bit", text)]
    return next((ceiling for ceiling in ceilings if ceiling in (BEFORE[kind], AFTER[kind])), -1)


def ifb_of(guest: Guest) -> str:
    """The one IFB that shapes what guests send."""
    links = subprocess.run(["ip", "-n", guest.host.name, "-o", "link", "show", "type", "ifb"], check=True, capture_output=True, text=True)
    return re.findall(r"\d+: ([^:@]+)", links.stdout)[0]


def closed(home: Path, step_id: str) -> list[OutcomeState]:
    """Outcomes in a copy of the journal: its writer may be alive."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(shutil.copytree(home / "journal", Path(folder) / "copy"))
        with contextlib.closing(journal):
            return [e.outcome.state for e in journal.read() if isinstance(e, Closed) and e.outcome.step.id == step_id]


@pytest.mark.parametrize(("kind", "place"), CASES, ids=str)
def test_killed_while_changing_a_real_guest(
    kind: StepKind, place: str, guest: Guest, hypervisor: LibvirtHypervisor, real_host: RealHost
) -> None:
    near = 2 * MIB if kind is M else 0  # the balloon moves in pages, and the guest keeps a few
    home = Path(real_host.directory) / f"k{uuid.uuid4().hex[:6]}"
    home.mkdir()
    if kind is V:
        before = shown(guest, V)
        after = before + 1
    else:
        before, after = BEFORE[kind], AFTER[kind]
        hypervisor.domains()
        hypervisor.submit(guest.vm_id, kind, before)
        wait_for(lambda: abs(shown(guest, kind) - before) <= near, f"{kind} to be {before} at first")
    order = Step(id="order-1", vm_id=guest.vm_id, kind=kind, value=after, reason="operator", deadline_ns=0)

    first = Agent(home, real_host, order, place)
    try:
        assert first.process.wait(120) == -signal.SIGKILL, (home / "log").read_text()[-2000:]
    finally:
        first.process.kill()
        first.process.wait(10)

    second = Agent(home, real_host)
    try:
        wait_for(second.up, "the agent to be up again", 60)
        told = 0 if place == "journal.intent.before" else 1
        wait_for(lambda: second.in_flight() == 0 and len(closed(home, order.id)) == told, "the step to be resolved", 2 * PERIOD_S + LATE_S)
        value = shown(guest, kind)
        assert any(abs(value - one) <= near for one in (before, after)), f"{kind} is {value}, before {before}, after {after}"
    finally:
        second.stop()
    outcomes = closed(home, order.id)
    assert len(outcomes) == told
    if outcomes and outcomes[0] is OutcomeState.VERIFIED:
        assert abs(value - after) <= near
