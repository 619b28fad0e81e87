"""Many agents in one process, for benches of the service: the product's own link and wire, a spool in memory, readings made up beforehand.

What agents read is cheap to make, so that the load generator costs little; what they say is what real ones say: Hello, Inventory, Status,
frames of three samples, each acknowledged before it leaves the spool. The lag (frames made too late) tells an overloaded generator.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from agent.link.client import LinkClient, LinkEvent, LinkMessage, LinkUp
from shared.clock import ClockAnchor, ScaledClock
from shared.frame import HEADER, MAGIC, VERSION, encode_block
from shared.messages import Ack, Hello, Inventory, Samples, Status
from shared.model import Domain, HostCapacity, HostSample, Mode, VmSample
from shared.tls import client_context
from shared.units import BUCKET_S, GIB, NS_PER_S

PERIOD_S: Final = 5
FRAME_SAMPLES: Final = 3
STATUS_FRAMES: Final = 2  # a Status with every second frame: half a minute
KEPT_LATENCIES: Final = 2_000_000
CAPACITY: Final = HostCapacity(
    cpu_millicores=64_000,
    memory_bytes=512 * GIB,
    net_bits_per_s=10**10,
    cpu_commit_millicores=256_000,
    memory_commit_bytes=512 * GIB,
    net_commit_bits_per_s=10**10,
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one process of agents does."""

    pki: Path
    urls: tuple[str, ...]
    host_ids: tuple[str, ...]
    vms: int  # per host
    clock: ClockAnchor
    boot_id: str = "boot-1"


@dataclass
class Told:
    """What a process of agents has seen since the last `mark`. Latencies in real seconds from spooled to acknowledged."""

    up: int = 0  # agents connected now
    connects: int = 0
    made: int = 0  # VM samples
    acked: int = 0
    waiting: int = 0  # frames not acknowledged now
    cpu_s: float = 0.0
    lag_s: float = 0.0  # the latest that a frame was made too late
    latencies: Any = None  # float32[n]
    expected: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)  # host -> bucket -> (samples, sum of CPU) acknowledged


def value_of(sample: int) -> int:
    """CPU use (millicores) that every VM shows in its host's sample of that number."""
    return 500 + sample * 37 % 997


class AgentProcess:
    """Agents in a process of their own, asked through a pipe."""

    def __init__(self, load: Load) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ask, answers = spawn.Pipe()
        self._process = spawn.Process(target=_main, args=(load, answers), daemon=True)
        self._process.start()
        answers.close()

    def ask(self, what: str) -> Told:
        """ "mark" = forget latencies and counts; "told" = what was seen since; "all" = with `expected`; "pause" = make no more samples."""
        self._ask.send(what)
        told: Told = self._ask.recv()
        return told

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


class _Agent:
    """One agent: frames made from a pattern, spooled until acknowledged."""

    def __init__(self, fleet: _Fleet, number: int, host_id: str) -> None:
        load = fleet.load
        self.fleet, self.host_id, self.number = fleet, host_id, number
        self.frames: dict[int, bytes] = {}
        self.made_s: dict[int, float] = {}
        self.first, self.next = 0, 0
        self.vm_ids = [f"{host_id}-vm{j:02d}" for j in range(load.vms)]
        self.offset_s = PERIOD_S * FRAME_SAMPLES * number / max(1, len(load.host_ids))
        tls = client_context(load.pki / "ca.pem", load.pki / f"host-{host_id}.pem", load.pki / f"host-{host_id}.key")
        self.link = LinkClient(load.urls, tls, self._hello, self, self._on_event)
        self._pattern = _pattern(self.vm_ids, number)

    def pending(self, after_sequence: int) -> Iterator[tuple[int, bytes]]:
        for sequence in range(max(self.first, after_sequence + 1), self.next):
            yield sequence, self.frames[sequence]

    def make(self, started_ns: int) -> None:
        """The next frame of three samples."""
        sequence = self.next
        self.frames[sequence] = self._frame(sequence, started_ns)
        self.made_s[sequence] = time.monotonic()
        self.next += 1
        self.link.notify()
        if sequence % STATUS_FRAMES == 0:
            self.link.send(Status(wall_ns=self.fleet.clock.wall_ns(), mode=Mode.OBSERVE, mode_pinned=False, spool_frames=len(self.frames)))

    def wall_ns(self, sample: int, started_ns: int) -> int:
        return started_ns + int((self.offset_s + sample * PERIOD_S) * NS_PER_S)

    def _frame(self, sequence: int, started_ns: int) -> bytes:
        numbers = range(sequence * FRAME_SAMPLES, (sequence + 1) * FRAME_SAMPLES)
        walls = [self.wall_ns(number, started_ns) for number in numbers]
        block = dict(self._pattern)
        stamps = struct.pack(f"<{FRAME_SAMPLES}q", *walls)
        block["host"] = block["host"] | {"wall_ns": stamps, "monotonic_ns": stamps}
        cells = [value_of(number) for number in numbers for _ in self.vm_ids]
        block["columns"] = block["columns"] | {"cpu_used_millicores": struct.pack(f"<{len(cells)}q", *cells)}
        message = Samples(boot_id=self.fleet.load.boot_id, sequence=sequence, block=msgspec.msgpack.encode(block))
        body = msgspec.msgpack.encode(message)
        return HEADER.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body

    def _hello(self) -> Hello:
        return Hello(
            host_id=self.host_id,
            boot_id=self.fleet.load.boot_id,
            agent_version="bench",
            wall_ns=self.fleet.clock.wall_ns(),
            capacity=CAPACITY,
            mode=Mode.OBSERVE,
            mode_pinned=False,
        )

    def _on_event(self, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self.fleet.connects += 1
            domains = tuple(Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB) for vm_id in self.vm_ids)
            self.link.send(Inventory(domains=domains))
            self._acked(event.welcome.acked)
        elif isinstance(event, LinkMessage) and isinstance(event.message, Ack):
            self._acked(event.message.sequence)

    def _acked(self, upto: int) -> None:
        now_s, fleet = time.monotonic(), self.fleet
        for sequence in range(self.first, min(upto, self.next - 1) + 1):
            del self.frames[sequence]
            fleet.latencies.append(now_s - self.made_s.pop(sequence))
            fleet.acked_frames[self.number] += 1
        self.first = max(self.first, upto + 1)


class _Fleet:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.clock = ScaledClock(load.clock)
        self.connects = 0
        self.latencies: list[float] = []
        self.acked_frames: Counter[int] = Counter()  # since the start
        self.made_frames = self.made_mark = self.acked_mark = 0
        self.lag_s = 0.0
        self.going = asyncio.Event()
        self.going.set()
        self.cpu_mark = time.process_time()
        self.agents = [_Agent(self, number, host_id) for number, host_id in enumerate(load.host_ids)]

    async def run(self, answers: Connection) -> None:
        loop = asyncio.get_running_loop()
        links = [asyncio.create_task(agent.link.run()) for agent in self.agents]
        asked: asyncio.Queue[str] = asyncio.Queue()
        loop.add_reader(answers.fileno(), lambda: asked.put_nowait(answers.recv()))
        making = asyncio.create_task(self._make())
        while True:
            waiting = asyncio.create_task(asked.get())
            done, _ = await asyncio.wait({waiting, making, *links}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                task.result()
            answers.send(self._told(waiting.result()))

    async def _make(self) -> None:
        """Every agent's frame when its third sample is due, oldest first; all agents in one task, so that a turn costs no timer each."""
        started_ns = self.load.clock.simulated_start_ns
        frame_ns = PERIOD_S * FRAME_SAMPLES * NS_PER_S
        spread_ns = [int(agent.offset_s * NS_PER_S) + (FRAME_SAMPLES - 1) * PERIOD_S * NS_PER_S for agent in self.agents]
        turn = 0
        while True:
            for agent, due in zip(self.agents, spread_ns, strict=True):
                due_ns = started_ns + turn * frame_ns + due
                wait_s = (due_ns - self.clock.wall_ns()) / NS_PER_S / self.load.clock.speed
                if wait_s > 0.002:
                    await asyncio.sleep(wait_s)
                else:
                    self.lag_s = max(self.lag_s, -wait_s)
                await self.going.wait()
                agent.make(started_ns)
                self.made_frames += 1
            turn += 1
            await asyncio.sleep(0)

    def _told(self, what: str) -> Told:
        cells = FRAME_SAMPLES * self.load.vms
        acked = sum(self.acked_frames.values())
        told = Told(
            up=sum(agent.link.up for agent in self.agents),
            connects=self.connects,
            made=(self.made_frames - self.made_mark) * cells,
            acked=(acked - self.acked_mark) * cells,
            waiting=sum(len(agent.frames) for agent in self.agents),
            cpu_s=time.process_time() - self.cpu_mark,
            lag_s=self.lag_s,
            latencies=np.array(self.latencies[-KEPT_LATENCIES:], np.float32),
        )
        if what == "mark":
            self.latencies.clear()
            self.connects, self.lag_s, self.cpu_mark = 0, 0.0, time.process_time()
            self.made_mark, self.acked_mark = self.made_frames, acked
        elif what == "pause":
            self.going.clear()
        elif what == "all":
            told.expected = {agent.host_id: self._expected(agent) for agent in self.agents}
        return told

    def _expected(self, agent: _Agent) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for number in range(agent.first * FRAME_SAMPLES):
            start_s = agent.wall_ns(number, self.load.clock.simulated_start_ns) // NS_PER_S // BUCKET_S * BUCKET_S
            count, total = found.get(start_s, (0, 0))
            found[start_s] = count + 1, total + value_of(number)
        return found


def _pattern(vm_ids: list[str], seed: int) -> dict[str, Any]:
    """The block of a host's frame, as a map to be stamped; a busy guest's usual two dozen readings, plausible and not all alike."""
    rng = random.Random(seed)

    def vm() -> VmSample:
        return VmSample(
            cpu_used_millicores=0,
            cpu_throttled_permille=0,
            cpu_ready_permille=rng.randrange(3),
            psi_cpu_some_permille=rng.randrange(20),
            psi_memory_some_permille=0,
            psi_io_some_permille=rng.randrange(5),
            memory_used_bytes=rng.randrange(GIB, 3 * GIB),
            memory_usable_bytes=rng.randrange(GIB, 3 * GIB),
            memory_rss_bytes=rng.randrange(GIB, 6 * GIB),
            memory_reading_age_ms=rng.randrange(10_000),
            memory_major_faults_per_s=0,
            memory_swap_bytes_per_s=0,
            disk_read_bytes_per_s=rng.randrange(10**7),
            disk_write_bytes_per_s=rng.randrange(10**7),
            net_rx_bits_per_s=rng.randrange(10**8),
            net_tx_bits_per_s=rng.randrange(10**8),
            net_rx_dropped_per_s=0,
            net_tx_dropped_per_s=0,
            vcpus=4,
            cpu_quota_millicores=4000,
            cpu_shares=1024,
            memory_allocated_bytes=6 * GIB,
            disk_limit_bytes_per_s=-1,
            net_rx_ceil_bits_per_s=-1,
            net_tx_ceil_bits_per_s=-1,
            cpu_used_peak_millicores=rng.randrange(2000),
            disk_read_ops_per_s=rng.randrange(500),
            disk_write_ops_per_s=rng.randrange(500),
            disk_latency_us=rng.randrange(3000),
            vcpus_online=4,
            cpu_period_us=100_000,
        )

    samples = [
        HostSample(
            wall_ns=1,
            monotonic_ns=1,
            period_ns=PERIOD_S * NS_PER_S,
            cpu_used_millicores=rng.randrange(30_000),
            memory_available_bytes=rng.randrange(200 * GIB),
            psi_io_some_permille=rng.randrange(10),
            vms={vm_id: vm() for vm_id in vm_ids},
        )
        for _ in range(FRAME_SAMPLES)
    ]
    block: dict[str, Any] = msgspec.msgpack.decode(encode_block(samples))
    return block


def _main(load: Load, answers: Connection) -> None:
    os.nice(5)  # the load must not take the processor from what it loads
    asyncio.run(_Fleet(load).run(answers))
