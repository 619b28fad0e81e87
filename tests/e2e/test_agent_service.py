"""The agent's process from inside: a disk that refuses, a hypervisor that hangs, a mode that changes while steps wait."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_host import plain_capacity

from agent.acting.journal import Journal, JournalEntry
from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.workload import Workload
from agent.events import Intent
from agent.service import AgentService
from agent.service.hosts import HostBundle
from shared.clock import Clock
from shared.config import AgentConfig, ClockConfig
from shared.control import ask
from shared.errors import HostError
from shared.model import Allocation, HostCapacity, Mode
from shared.plan import StepKind
from shared.units import GIB, NS_PER_S
from shared.workload import SERIES, VmWorkload, WorkloadFile

START_S = 1_800_000_000
BUCKETS = 48


def hungry_vm() -> VmWorkload:
    """Wants 3 CPUs and 200 Mbit/s, has 1 and 50: the local rule asks for two levers of it at once."""
    demand = {"cpu_millicores": 3000, "memory_bytes": GIB, **dict.fromkeys(SERIES[2:], 200_000_000)}
    series: dict[str, Any] = {key: struct.pack(f"<{BUCKETS}q", *[value] * BUCKETS) for key, value in demand.items()}
    return VmWorkload(
        vm_id="vm-1",
        name="hungry",
        source="test",
        vcpus_max=4,
        memory_max_bytes=8 * GIB,
        initial=Allocation(
            vcpus=4, cpu_quota_millicores=1000, memory_bytes=4 * GIB, net_rx_bits_per_s=50_000_000, net_tx_bits_per_s=50_000_000
        ),
        seed=7,
        **series,
    )


class Hypervisor:
    """A simulated host that writes down what is submitted; the first submit waits for `release`."""

    def __init__(self, host: SimulatedHost, *, hangs: bool = False) -> None:
        self._host = host
        self.began: list[StepKind] = []
        self.release = threading.Event()
        if not hangs:
            self.release.set()

    def submit(self, vm_id: str, kind: StepKind, value: int) -> None:
        self.began.append(kind)
        assert self.release.wait(30)
        self._host.submit(vm_id, kind, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class Process:
    """One AgentService on one hungry VM, in mode reactive, 60 times as fast as real."""

    def __init__(self, folder: Path, *, hangs: bool = False) -> None:
        clock = ClockConfig(simulated_start_ns=START_S * NS_PER_S, real_start_ns=time.time_ns(), speed=60.0)
        self.config = AgentConfig(
            host_id="h1",
            state_dir=str(folder),
            socket_path=str(folder / "s"),
            hypervisor="simulated",
            workload="given",
            default_mode=Mode.REACTIVE,
            clock=clock,
            pause_file=str(folder / "PAUSE"),
        )
        load = Workload(WorkloadFile(host="h1", start_s=START_S, buckets=BUCKETS, seed=3, capacity=capacity(), vms=(hungry_vm(),)))
        opened: Clock = clock.open()
        host = SimulatedHost(load, lambda: (opened.wall_ns(), opened.wall_ns()))
        self.hypervisor = Hypervisor(host, hangs=hangs)
        self.service = AgentService(self.config, HostBundle(hypervisor=self.hypervisor, reader=host))

    async def ask(self, command: str, argument: str | None = None) -> Any:
        return await asyncio.to_thread(ask, Path(self.config.socket_path), command, argument)


def capacity() -> HostCapacity:
    return plain_capacity(cpu_millicores=16_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        await asyncio.sleep(0.01)


def test_a_journal_that_cannot_be_written_ends_the_process_and_nothing_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Journal.write

    def full(journal: Journal, entry: JournalEntry) -> None:
        if isinstance(entry, Intent):
            raise HostError("journal: No space left on device")
        write(journal, entry)

    monkeypatch.setattr(Journal, "write", full)
    process = Process(tmp_path)
    with pytest.raises(HostError, match="No space left on device"):
        asyncio.run(asyncio.wait_for(process.service.run(), 20))
    assert process.hypervisor.began == []
    assert not Path(process.config.socket_path).exists()


def test_steps_of_one_vm_run_one_after_another_and_those_that_wait_die_with_the_mode(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = Process(tmp_path, hangs=True)
        running = asyncio.create_task(process.service.run())
        began = process.hypervisor.began
        await until(lambda: process.service.core.in_flight >= 2, "two levers asked for")
        await until(lambda: len(began) == 1, "the first submit")
        assert (await process.ask("mode", "off"))["mode"] == "off"
        assert len(began) == 1, "the second submit overtook the first"
        process.hypervisor.release.set()
        await until(lambda: process.service.core.in_flight == 0, "both steps ended")
        assert len(began) == 1, "a step was submitted in mode off"
        story = (await process.ask("why", "hungry"))["story"]
        assert "mode_forbids" in {entry["code"] for entry in story if entry["verdict"] == "refused"}
        process.service.stop()
        await running

    asyncio.run(scenario())


def test_a_mode_that_cannot_be_stored_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise HostError("mode file: No space left on device")

    monkeypatch.setattr("agent.service.performing.save_mode", full)

    async def scenario() -> None:
        process = Process(tmp_path)
        running = asyncio.create_task(process.service.run())
        await until(lambda: Path(process.config.socket_path).exists(), "the socket")
        with pytest.raises(HostError, match="No space left"):
            await process.ask("mode", "off")
        with pytest.raises(HostError, match="No space left"):
            await asyncio.wait_for(running, 20)

    asyncio.run(scenario())


def test_a_thread_that_hangs_in_the_hypervisor_does_not_keep_the_process() -> None:
    script = """
import threading
from concurrent.futures import ThreadPoolExecutor
from agent import cli
from shared.errors import HostError
import agent.service as service
async def stuck(config, reread):
    ThreadPoolExecutor(1).submit(threading.Event().wait)
    raise HostError("sampling is stuck")
service.run_agent = stuck
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "run"],
        capture_output=True,
        check=False,
        text=True,
        timeout=20,
        env={**os.environ, "TIDEGATE_AGENT_HOST_ID": "h1"},
    )
    assert (done.returncode, done.stderr) == (1, "tidegate-agent: sampling is stuck\n")
