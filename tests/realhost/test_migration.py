"""Live migration between two real hosts: libvirtd, QEMU and tc on each, a cable between them.

First the adapter alone, both ways of migrating, held to the same contract as the fake. Then two whole agents: the source's moves a VM by a
step, the target's finds the limits that travelled and puts them in force; moves that are given up leave the VM and its limits where they
were; and the other VMs are sampled all the while.

A guest without hardware virtualization that runs on through a long migration does not survive it: QEMU 7.2 (TCG) misses pages that are
written meanwhile, and the guest panics at its destination with a broken timer tree, whoever drives the migration. So what is to arrive
moves within a second or two, or suspended; what is given up may take its time.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from migrator_contract import MigratorContract, Side
from real_host import Guest, RealHost, wait_for

from agent import events as ev
from agent.adapters.libvirt_migration import LibvirtMigrator
from agent.adapters.shaping_tree import SHARED_IFB
from agent.service import AgentService
from shared.config import AgentConfig, GuardConfig, MigrationConfig, SamplingConfig
from shared.model import Allocation, HostSample, Mode
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import MBIT, MIB, NS_PER_S, UNLIMITED

pytestmark = [pytest.mark.realhost, pytest.mark.slow(minutes=6), pytest.mark.timeout(420)]

PERIOD_S = 2
QUOTA, RX, TX, BALLOON = 700, 4 * MBIT, 3 * MBIT, 104 * MIB
FAST = 800 * MBIT
SLOW = 17 * MBIT  # 2 MiB/s: half a minute and more for a guest's first pass


@pytest.fixture(scope="module")
def guest(hosts: tuple[RealHost, RealHost]) -> Iterator[Guest]:
    """The VM that moves. Each test leaves it on the first host."""
    guest = hosts[0].define_guest("mover", vcpus=1, vcpus_max=2, memory_mib=112, memory_max_mib=128, ip="10.79.0.2/24")
    yield guest
    guest.close()


# The adapter


class OnLibvirt(MigratorContract):
    peer_to_peer = True

    @pytest.fixture
    def sides(self, hosts: tuple[RealHost, RealHost], guest: Guest) -> Iterator[tuple[Side, Side]]:
        sides = [self._side(host, guest) for host in hosts]
        yield sides[0], sides[1]
        for side in sides:
            side.migrator.close()  # type: ignore[attr-defined]

    def _side(self, host: RealHost, guest: Guest) -> Side:
        def runs() -> bool:
            return any(domain.UUIDString() == guest.vm_id and domain.info()[0] == 1 for domain in host.connection.listAllDomains())

        other = "10.98.0.2" if host.address == "10.98.0.1" else "10.98.0.1"
        migrator = LibvirtMigrator(host.uri, host.name, peer_to_peer=self.peer_to_peer, migrate_uri=f"tcp://{other}")
        return Side(migrator=migrator, uri=f"qemu+tcp://{host.address}/system" if self.peer_to_peer else host.uri, runs=runs)

    @pytest.fixture
    def vm_id(self, guest: Guest) -> str:
        return guest.vm_id

    @pytest.fixture
    def until(self) -> Callable[[Callable[[], object], str], object]:
        return wait_for

    def test_the_owners_policy_is_not_touched_and_downtime_is_told(self, sides: tuple[Side, Side], guest: Guest) -> None:
        policy = '<policy priority="high"/>'
        guest.domain.setMetadata(2, policy, "policy", "urn:tidegate:policy:1", 1)
        (here, there), home = sides, guest.host
        try:
            figures = here.migrator.migrate(guest.vm_id, there.uri, FAST, Allocation(vcpus=1))
            assert figures is not None
            assert figures.downtime_ms is not None
            assert 0 < figures.downtime_ms < figures.elapsed_ms
            assert (figures.memory_processed_bytes or 0) > 10 * MIB
            there.migrator.taken_up(guest.vm_id)
        finally:
            if not here.runs():
                there.migrator.migrate(guest.vm_id, here.uri, FAST, Allocation(vcpus=1))
        here.migrator.taken_up(guest.vm_id)
        guest.domain = home.connection.lookupByUUIDString(guest.vm_id)
        assert guest.domain.metadata(2, "urn:tidegate:policy:1", 1) == policy


class TestPeerToPeer(OnLibvirt):
    peer_to_peer = True


class TestClientDriven(OnLibvirt):
    peer_to_peer = False


# Two agents


class Agent:
    """A whole agent in a thread. `samples` and `outcomes` are what its core was told and said."""

    def __init__(self, host: RealHost, folder: Path, migration: MigrationConfig) -> None:
        config = AgentConfig(
            host_id=host.name,
            state_dir=str(folder),
            socket_path=str(folder / "control.sock"),
            pause_file=str(folder / "PAUSE"),
            libvirt_uri=host.uri,
            network_namespace=host.netns,
            sample_period_s=PERIOD_S,
            sampling=SamplingConfig(starved_permille=1000),  # two emulated guests starve any machine of two cores
            default_mode=Mode.PREDICTIVE,
            guard=GuardConfig(memory_floor_bytes=64 * MIB, net_floor_bits_per_s=MBIT, reading_max_age_s=120, foreign_yield_s=0),
            migration=migration,
        )
        self.host = host
        self.service = AgentService(config)
        self.samples: list[tuple[float, HostSample]] = []
        self.periods: list[float] = []  # in force at each sample: longer where the machine starves
        self.outcomes: list[Outcome] = []
        self.instructions: list[ev.Instruction] = []
        self._decide = self.service.core.handle
        self.service.core.handle = self._handle  # type: ignore[method-assign]
        self._sequence = 0
        self.failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"agent {host.name}")
        self._thread.start()
        wait_for(lambda: self.samples or self.failure, "the agent's first sample")
        self.tell(ev.LinkUp(epoch=1, acked=-1))

    def _run(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await self.service.run()

        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001  # shown by `check`
            self.failure = error

    def _handle(self, event: ev.Event, now_ns: int) -> list[ev.Instruction]:
        out = self._decide(event, now_ns)
        if isinstance(event, ev.Sampled):
            self.samples.append((time.monotonic(), event.sample))
            self.periods.append(self.service.picture.period_s)
        self.instructions += out
        self.outcomes += [i.entry.outcome for i in out if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Closed)]
        return out

    def tell(self, event: ev.Event) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.service.handle, event)

    def order(self, kind: StepKind, guest: Guest, value: int, target: str = "") -> str:
        """A plan of one step, as an operator's order comes."""
        self._sequence += 1
        deadline_ns = time.time_ns() + 120 * NS_PER_S
        step = Step(
            id=f"order-{self.host.name}-{self._sequence}-{time.monotonic_ns()}",
            vm_id=guest.vm_id,
            kind=kind,
            value=value,
            target=target,
            reason="operator",
            deadline_ns=deadline_ns,
        )
        plan = Plan(
            host_id=self.host.name, epoch=1, sequence=self._sequence, issued_ns=time.time_ns(), deadline_ns=deadline_ns, steps=(step,)
        )
        self.tell(ev.PlanArrived(plan=plan))
        return step.id

    def outcome(self, step_id: str, seconds: float = 120) -> Outcome:
        def found() -> Outcome | None:
            self.check()
            return next((outcome for outcome in self.outcomes if outcome.step.id == step_id), None)

        outcome: Outcome = wait_for(found, f"the outcome of {step_id}", seconds)
        return outcome

    def told(self, kind: type) -> list[ev.Instruction]:
        return [instruction for instruction in self.instructions if isinstance(instruction, kind)]

    def check(self) -> None:
        if self.failure is not None:
            raise AssertionError(f"the agent of {self.host.name} ended") from self.failure

    def close(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.service.stop)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.check()


def migration(target: RealHost, bits_per_s_max: int, *, peer_to_peer: bool = True) -> MigrationConfig:
    uri = f"qemu+tcp://{target.address}/system" if peer_to_peer else target.uri
    return MigrationConfig(
        targets=(f"{target.name}={uri}",),
        peer_to_peer=peer_to_peer,
        migrate_uri="tcp://{host}" if peer_to_peer else f"tcp://{target.address}",
        bits_per_s_max=bits_per_s_max,
        no_progress_s=10,
    )


@pytest.fixture
def agents(hosts: tuple[RealHost, RealHost], guest: Guest, tmp_path: Path) -> Iterator[Callable[..., tuple[Agent, Agent]]]:
    """Starts one agent on each host; the bandwidth is that of the first, back home it is always fast."""
    made: list[Agent] = []

    def start(bits_per_s_max: int = FAST, *, peer_to_peer: bool = True) -> tuple[Agent, Agent]:
        for host, other in (hosts, hosts[::-1]):
            folder = tmp_path / host.name[-1]
            most = bits_per_s_max if host is hosts[0] else FAST
            made.append(Agent(host, folder, migration(other, most, peer_to_peer=peer_to_peer)))
        return made[0], made[1]

    yield start
    for agent in made:
        agent.close()


def limited(agent: Agent, guest: Guest) -> None:
    """Put the limits that the tests look for in force, by the levers of the agent itself."""
    hypervisor = agent.service.host.hypervisor
    # an agent that ended right after a move leaves what came with it to the next one, which would work against us here
    wait_for(lambda: "urn:tidegate:limits:1" not in guest.domain.XMLDesc(0), "what came with an earlier move to be taken up")
    wanted = {StepKind.CPU_QUOTA: QUOTA, StepKind.NET_RX: RX, StepKind.NET_TX: TX, StepKind.MEMORY: BALLOON}
    for kind, value in wanted.items():
        hypervisor.submit(guest.vm_id, kind, value)
    wait_for(lambda: in_force(guest) == (QUOTA, BALLOON), "quota and balloon")

    def sampled() -> bool:
        vm = agent.samples[-1][1].vms.get(guest.vm_id)
        return vm is not None and (
            (vm.net_rx_ceil_bits_per_s, vm.net_tx_ceil_bits_per_s, vm.cpu_quota_millicores, vm.memory_allocated_bytes)
            == (RX, TX, QUOTA, BALLOON)
        )

    wait_for(sampled, "the agent to see the limits")


def in_force(guest: Guest) -> tuple[int, int]:
    """(quota in millicores, balloon in bytes) as libvirt says."""
    parameters = guest.domain.schedulerParameters()
    return parameters["vcpu_quota"] * 1000 // parameters["vcpu_period"] * guest.domain.info()[3], guest.domain.memoryStats()[
        "actual"
    ] * 1024


def ceilings(host: RealHost, guest: Guest) -> tuple[bool, bool]:
    """Whether tc shows the ceiling towards the guest (on its tap) and from it (on the IFB that all taps of the host share)."""
    shown = []
    for device, wanted in ((guest.tap, "ceil 4Mbit"), (SHARED_IFB, "ceil 3Mbit")):
        found = subprocess.run(["tc", "-n", host.name, "class", "show", "dev", device], capture_output=True, text=True, check=False)
        shown.append(wanted in found.stdout)
    return shown[0], shown[1]


def devices(host: RealHost) -> set[str]:
    found = subprocess.run(["ip", "-n", host.name, "-br", "link"], capture_output=True, text=True, check=True)
    return {line.split()[0].partition("@")[0] for line in found.stdout.splitlines()}


@pytest.mark.parametrize(
    "peer_to_peer", [pytest.param(True, id="peer_to_peer"), pytest.param(False, id="client_driven", marks=pytest.mark.long)]
)
def test_a_vm_moves_and_its_limits_with_it(agents: Callable[..., tuple[Agent, Agent]], guest: Guest, *, peer_to_peer: bool) -> None:
    source, target = agents(peer_to_peer=peer_to_peer)
    limited(source, guest)
    assert ceilings(source.host, guest) == (True, True)
    work = guest.work()

    outcome = source.outcome(source.order(StepKind.MIGRATE, guest, UNLIMITED, target.host.name))
    assert (outcome.state, outcome.code) == (OutcomeState.VERIFIED, None), outcome.detail
    assert "elapsed" in outcome.detail
    assert "bytes sent" in outcome.detail
    began = time.monotonic()
    guest.moved_to(target.host)
    try:
        assert guest.work() >= work
        assert guest.sh("cat /proc/uptime")
        wait_for(lambda: ceilings(target.host, guest) == (True, True), "the ceilings on the target", 60)
        took = time.monotonic() - began
        wait_for(lambda: in_force(guest) == (QUOTA, BALLOON), "quota and balloon on the target", 60)
        wait_for(lambda: target.told(ev.TakenUp), "the limits to be taken up", 60)
        wait_for(lambda: "urn:tidegate:limits:1" not in guest.domain.XMLDesc(0), "the note to be gone", 30)
        origins = {(o.step.kind, o.origin, o.state) for o in target.outcomes if o.step.vm_id == guest.vm_id}
        assert {(StepKind.NET_RX, "migration", OutcomeState.VERIFIED), (StepKind.NET_TX, "migration", OutcomeState.VERIFIED)} <= origins
        assert took < 30 + 5 * PERIOD_S
        # the source has swept its shaping away
        assert guest.tap not in devices(source.host)
        wait_for(lambda: ceilings(source.host, guest) == (False, False), "the source's leftovers to be swept", 60)
        # the target's readings begin anew: nothing negative, nothing wild
        seen = wait_for(lambda: [s.vms[guest.vm_id] for _, s in target.samples if guest.vm_id in s.vms][3:], "samples on the target", 60)
        for vm in seen:
            for name in ("cpu_used_millicores", "net_rx_bits_per_s", "net_tx_bits_per_s", "disk_read_bytes_per_s"):
                value = getattr(vm, name)
                assert value is None or 0 <= value <= 10**10, (name, value)
            assert vm.cpu_used_millicores is None or vm.cpu_used_millicores <= 4000
    finally:
        back = target.outcome(target.order(StepKind.MIGRATE, guest, UNLIMITED, source.host.name))
    assert back.state is OutcomeState.VERIFIED, back
    guest.moved_to(source.host)
    wait_for(lambda: ceilings(source.host, guest) == (True, True), "the ceilings at home again", 60)
    wait_for(lambda: "urn:tidegate:limits:1" not in guest.domain.XMLDesc(0), "the limits to be taken up at home", 60)


def test_a_move_outlives_the_agent_that_began_it(
    agents: Callable[..., tuple[Agent, Agent]], hosts: tuple[RealHost, RealHost], guest: Guest, tmp_path: Path
) -> None:
    """Peer to peer libvirtd carries on; the agent that starts meanwhile neither begins it again nor takes it for failed.

    The guest is suspended as soon as it is on its way: see the module's docstring.
    """
    source, target = agents(40 * MBIT)
    moving = source.order(StepKind.MIGRATE, guest, UNLIMITED, target.host.name)
    wait_for(lambda: guest.domain.jobStats(0).get("memory_processed", 0) > MIB, "the first bytes")
    guest.domain.suspend()
    source.close()
    assert not [outcome for outcome in source.outcomes if outcome.step.id == moving]
    again = Agent(source.host, tmp_path / source.host.name[-1], migration(target.host, 40 * MBIT))
    try:
        outcome = again.outcome(moving)
        assert outcome.state is OutcomeState.VERIFIED, outcome
        assert not again.told(ev.StartMigration)
    finally:
        again.close()
        wait_for(lambda: not hosts[0].connection.listAllDomains(), "the VM to be gone from the source")
        guest.moved_to(target.host)
        assert guest.sh("echo here") == "here"  # libvirt resumes at the destination what ran when the migration began
        wait_for(lambda: target.told(ev.TakenUp), "the limits to be taken up", 60)
        back = target.outcome(target.order(StepKind.MIGRATE, guest, UNLIMITED, source.host.name))
        assert back.state is OutcomeState.VERIFIED, back
        guest.moved_to(source.host)


def test_given_up_it_stays_with_its_limits_while_others_are_sampled(
    agents: Callable[..., tuple[Agent, Agent]], hosts: tuple[RealHost, RealHost], guest: Guest
) -> None:
    bystander = hosts[0].define_guest("bystander", memory_mib=96, memory_max_mib=96, ip="10.79.1.2/24")
    try:
        source, target = agents(SLOW)
        limited(source, guest)

        # the kill switch
        moving = source.order(StepKind.MIGRATE, guest, UNLIMITED, target.host.name)
        wait_for(lambda: guest.domain.jobStats(0).get("memory_processed", 0) > MIB, "the first bytes")
        source.tell(ev.ModePinned(mode=Mode.OFF))
        ended = source.outcome(moving, 30)
        assert (ended.state, ended.code) == (OutcomeState.UNDONE, RefusalCode.MODE_FORBIDS), ended
        assert in_force(guest) == (QUOTA, BALLOON)
        source.tell(ev.ModePinned(mode=None))

        # a guest that writes faster than may be sent
        guest.mem(24)
        began = time.monotonic()
        moving = source.order(StepKind.MIGRATE, guest, UNLIMITED, target.host.name)
        ended = source.outcome(moving, 240)
        assert (ended.state, ended.code) == (OutcomeState.UNDONE, RefusalCode.NOT_CONVERGING), ended
        lasted = time.monotonic() - began
        guest.mem(0)
        assert guest.sh("echo here") == "here"
        assert in_force(guest)[0] == QUOTA
        assert ceilings(source.host, guest) == (True, True)
        assert not target.host.connection.listAllDomains()
        assert lasted > 15  # long enough to say something about sampling

        for agent in (source, target):
            rounds = [(at, period) for (at, _), period in zip(agent.samples, agent.periods, strict=False) if at > began]
            assert len(rounds) > lasted / (4 * PERIOD_S) - 1  # four periods are the most that a starved host backs off to
            for (before, due), (after, next_due) in itertools.pairwise(rounds):
                assert after - before < 1.5 * max(due, next_due), rounds
        during = [sample for at, sample in source.samples if began < at < began + lasted]
        assert all(bystander.vm_id in sample.vms for sample in during)
        assert all(guest.vm_id in sample.vms for sample in during)
    finally:
        bystander.close()
