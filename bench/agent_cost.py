"""What the agent costs: CPU, memory, cycle time, beside two exporters on the same domains; and whether it grows over a day.

Part 1: `tidegate-agent run` (mode observe, no coordinator) as a process of its own on paused domains, with prometheus-node-exporter and
prometheus-libvirt-exporter beside it where they are installed, all scraped every 5 s as Prometheus would. CPU is CPU time over wall time of
the whole process. libvirtd's and QEMU's own CPU is nobody's: all who ask cause it.
Part 2: the agent on a simulated host under a fast clock; its memory at simulated hour 1 against the last hour.

    apt-get install --no-install-recommends prometheus-node-exporter prometheus-libvirt-exporter
    python -m bench.agent_cost [--quick] [--vms 100] [--seconds 300] [--hours 24] [--json FILE]
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.agent_lab import PausedDomains, ProcessCost, reason_to_skip, scrape
from bench.report import Figure, options, publish
from shared.control import ask
from shared.errors import HostError
from shared.model import Allocation, HostCapacity
from shared.units import GIB, MIB, NS_PER_S
from shared.workload import VmWorkload, WorkloadFile, encode_workload

SCRAPE_S: Final = 5.0
DURATION: Final = "tidegate_agent_sample_duration_seconds"
# 300 simulated seconds per second leave 17 ms for each round, four times what it needs: a day takes five minutes.
SPEED: Final = 300.0
GROWTH_VMS: Final = 8


@dataclass
class Watched:
    """One measured process and what was seen of it."""

    name: str
    process: subprocess.Popen[bytes]
    address: str
    cpu_at_start: float = 0.0
    cpu_percent: float = 0.0
    rss_mib: float = 0.0
    cycles: list[float] = field(default_factory=list)
    last: Mapping[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> ProcessCost:
        return ProcessCost(self.process.pid)

    def look(self, warm: bool) -> None:
        """Scrape; RSS and, of the agent, the duration of the rounds since the last look."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
        now = scrape(self.address)
        rounds = now.get(f"{DURATION}_count", 0.0) - self.last.get(f"{DURATION}_count", 0.0)
        if warm and rounds > 0 and self.last:
            spent = now[f"{DURATION}_sum"] - self.last[f"{DURATION}_sum"]
            self.cycles.extend([spent / rounds] * int(rounds))
        self.last = now
        if warm:
            self.rss_mib = max(self.rss_mib, self.cost.rss_mib())


def free_address() -> str:
    """HOST:PORT of a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def settings(folder: Path, **values: str | float) -> Path:
    """A configuration file of an agent that lives in `folder`; values of tables by dotted names."""
    lines = [f'host_id = "bench"\nstate_dir = "{folder}/state"\nsocket_path = "{folder}/control.sock"\npause_file = "{folder}/PAUSE"']
    lines += [f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}" for name, value in values.items()]
    path = folder / "agent.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def running(name: str, address: str, command: list[str], log: Path) -> Iterator[Watched]:
    """The process until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield Watched(name, process, address)
    except BaseException:
        print(f"--- {name}\n{log.read_text()[-3000:]}", file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(watched: Watched, seconds: float = 60.0) -> None:
    """Return when its page can be had."""
    end = time.monotonic() + seconds
    while True:
        try:
            watched.look(warm=False)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def agent_command(config: Path) -> list[str]:
    """`tidegate-agent run` of this tree."""
    return [sys.executable, "-c", "from agent.cli import main; main()", "run", "--config", str(config)]


def side_by_side(vms: int, seconds: float, warm_up: float) -> list[Figure]:
    """Part 1."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-cost-")))
        print(f"starting {vms} paused domains ...", flush=True)
        domains = stack.enter_context(PausedDomains(vms))
        watched = []
        address = free_address()
        config = settings(
            folder,
            exporter_address=address,
            hypervisor="libvirt",
            libvirt_uri=domains.host.uri,
            network_namespace=domains.host.netns,
            default_mode="observe",
            log_level="warning",
            **{"sampling.starved_permille": 1000},  # the bars are for rounds of 5 s, also on a machine that is busy otherwise
        )
        watched.append(stack.enter_context(running("agent", address, agent_command(config), folder / "agent.log")))
        for program, arguments in (
            ("prometheus-node-exporter", []),
            ("prometheus-libvirt-exporter", [f"--libvirt.uri={domains.host.uri}"]),
        ):
            if shutil.which(program) is None:
                print(f"{program} is not installed: left out")
                continue
            address = free_address()
            command = [program, f"--web.listen-address={address}", *arguments]
            watched.append(stack.enter_context(running(program, address, command, folder / f"{program}.log")))
        for one in watched:
            wait_until_it_answers(one)
        scrape_for(watched, warm_up, warm=False)
        daemon = ProcessCost(domains.daemon_pid)
        daemon_cpu, began = daemon.cpu_seconds(), time.monotonic()
        for one in watched:
            one.cpu_at_start = one.cost.cpu_seconds()
        scrape_for(watched, seconds, warm=True)
        wall = time.monotonic() - began
        for one in watched:
            one.cpu_percent = (one.cost.cpu_seconds() - one.cpu_at_start) / wall * 100
        agent = watched[0]
        seen = int(agent.last.get("tidegate_agent_vms", 0))
        if seen != vms:
            raise RuntimeError(f"the agent sees {seen} of {vms} VMs: the figures would mean nothing")
        figures = figures_of(agent, watched[1:], vms, wall)
        figures.append(
            Figure(name="libvirtd, asked by all of them: CPU", value=(daemon.cpu_seconds() - daemon_cpu) / wall * 100, unit="% of a core")
        )
        return figures


def scrape_for(watched: list[Watched], seconds: float, *, warm: bool) -> None:
    """Scrape everybody every SCRAPE_S for so long."""
    end = due = time.monotonic()
    end += seconds
    while due < end:
        due = min(end, due + SCRAPE_S)
        time.sleep(max(0.0, due - time.monotonic()))
        for one in watched:
            one.look(warm)


def figures_of(agent: Watched, others: list[Watched], vms: int, seconds: float) -> list[Figure]:
    """The table of part 1. The other figures count only while a round comes every 5 s."""
    cycles = sorted(agent.cycles)
    p99 = cycles[min(len(cycles) - 1, int(len(cycles) * 0.99))] * 1000 if cycles else float("nan")
    full = vms >= 100  # the bars are for 100 VMs
    failed = [name for name, value in agent.last.items() if name.startswith("tidegate_agent_collector_success") and value != 1.0]
    if failed:
        print("collectors that fail here:", ", ".join(failed))
    figures = [
        Figure(name="VMs", value=vms, unit=""),
        bar("agent: CPU over wall", agent.cpu_percent, "% of a core", 1.0 if full else None),
        bar("agent: RSS, largest seen", agent.rss_mib, "MiB", 64.0 if full else None),
        bar("agent: cycle p99", p99, "ms", 250.0 if full else None),
        Figure(name="agent: cycle, mean", value=sum(cycles) / len(cycles) * 1000 if cycles else float("nan"), unit="ms"),
        Figure(name="agent: cycles measured", value=len(cycles), unit=""),
        bar("agent: time per cycle", seconds / len(cycles) if cycles else float("inf"), "s", 5.5),
        Figure(name="agent: threads", value=agent.cost.threads(), unit=""),
        Figure(name="agent: descriptors", value=agent.cost.descriptors(), unit=""),
    ]
    for other in others:
        figures.append(Figure(name=f"{other.name}: CPU over wall", value=other.cpu_percent, unit="% of a core"))
        figures.append(Figure(name=f"{other.name}: RSS, largest seen", value=other.rss_mib, unit="MiB"))
        if other.name == "prometheus-libvirt-exporter":
            ratio = agent.cpu_percent / other.cpu_percent if other.cpu_percent else float("inf")
            figures.append(bar("agent's CPU to libvirt exporter's", ratio, "", 1.0))
    return figures


def bar(name: str, value: float, unit: str, most: float | None) -> Figure:
    """A figure that must not pass `most`; None = only told."""
    return Figure(
        name=name, value=value, unit=unit, bar="" if most is None else f"<= {most:g}", holds=None if most is None else value <= most
    )


def growth(hours: int) -> list[Figure]:
    """Part 2: RSS at simulated hour 1 against `hours`."""
    with tempfile.TemporaryDirectory(prefix="tidegate-growth-") as name:
        folder = Path(name)
        (folder / "workload").write_bytes(encode_workload(day_of_work(hours)))
        start_ns = time.time_ns() + 3 * NS_PER_S  # the process is up by then
        config = settings(
            folder,
            hypervisor="simulated",
            workload=f"{folder}/workload",
            default_mode="reactive",
            log_level="warning",
            **{"clock.simulated_start_ns": START_S * NS_PER_S, "clock.real_start_ns": start_ns, "clock.speed": SPEED},
        )
        with running("agent", "", agent_command(config), folder / "agent.log") as agent:
            at = {}
            for hour in range(1, hours + 1):
                while time.time_ns() < start_ns + int(hour * 3600 / SPEED * NS_PER_S):
                    if agent.process.poll() is not None:
                        raise RuntimeError(f"the agent ended with {agent.process.returncode}")
                    time.sleep(0.05)
                at[hour] = agent.cost.rss_mib()
            rounds = rounds_of(folder / "control.sock")
        print("RSS by simulated hour:", " ".join(f"{hour}:{mib:.1f}" for hour, mib in at.items()))
        grown = (at[hours] / at[1] - 1) * 100
        return [
            Figure(name="agent, simulated: RSS at hour 1", value=at[1], unit="MiB"),
            Figure(name=f"agent, simulated: RSS at hour {hours}", value=at[hours], unit="MiB"),
            bar(f"agent, simulated: growth, hour 1 to {hours}", grown, "%", 2.0),
            Figure(name="agent, simulated: rounds per simulated hour", value=rounds / hours, unit=""),
        ]


def rounds_of(path: Path) -> int:
    """Sampling rounds that the agent counts."""
    try:
        return int(ask(path, "status")["sampling_rounds"])
    except (HostError, OSError) as error:
        raise RuntimeError(f"the simulated agent does not answer: {error}") from error


START_S: Final = 1_795_000_200  # a multiple of 300


def day_of_work(hours: int) -> WorkloadFile:
    """VMs that swing between a fifth and all of what they have once a day, each at its own hour, so that some rule acts all day."""
    buckets = hours * 12 + 24

    def series(most: int, phase: int) -> bytes:
        return array("q", [most // 5 + most * 4 // 5 * abs((i + phase) % 288 - 144) // 144 for i in range(buckets)]).tobytes()

    vms = tuple(
        VmWorkload(
            vm_id=f"00000000-0000-4000-8000-{i:012d}",
            name=f"vm-{i}",
            source="bench",
            vcpus_max=4,
            memory_max_bytes=4 * GIB,
            initial=Allocation(vcpus=2, cpu_quota_millicores=2000, memory_bytes=2 * GIB),
            seed=i,
            cpu_millicores=series(2500, i * 36),
            memory_bytes=series(2 * GIB, i * 36),
            disk_read_bytes_per_s=series(10 * MIB, i),
            disk_write_bytes_per_s=series(5 * MIB, i),
            net_rx_bits_per_s=series(50_000_000, i),
            net_tx_bits_per_s=series(50_000_000, i),
        )
        for i in range(GROWTH_VMS)
    )
    capacity = HostCapacity(
        cpu_millicores=16_000,
        memory_bytes=64 * GIB,
        net_bits_per_s=10_000_000_000,
        cpu_commit_millicores=64_000,
        memory_commit_bytes=60 * GIB,
        net_commit_bits_per_s=10_000_000_000,
    )
    return WorkloadFile(host="bench", start_s=START_S, buckets=buckets, seed=1, capacity=capacity, vms=vms)


def main() -> None:
    """Run both parts and print the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--vms", type=int, default=None, help="paused domains (100; quick: 5)")
    parser.add_argument("--seconds", type=float, default=None, help="measured time (300; quick: 15)")
    parser.add_argument("--hours", type=int, default=None, help="simulated hours of the second part (24; quick: 2); 0 = leave it out")
    given = parser.parse_args()
    vms = given.vms if given.vms is not None else 5 if given.quick else 100
    seconds = given.seconds if given.seconds is not None else 15.0 if given.quick else 300.0
    hours = given.hours if given.hours is not None else 2 if given.quick else 24
    figures: list[Figure] = []
    reason = reason_to_skip() if vms else "--vms 0"
    if reason is None:
        figures += side_by_side(vms, seconds, warm_up=10.0 if given.quick else 30.0)
    else:
        print(f"part 1 left out: {reason}")
    if hours:
        figures += growth(hours)
    publish(figures, given.json)


if __name__ == "__main__":
    main()
