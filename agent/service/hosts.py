"""Opens the host that the configuration names: libvirt or simulated. The only place that knows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.ports import HostReader, Hypervisor, Migrator, RawHost, RawVm
from agent.sampling.dirty import DirtyRates
from shared.clock import Clock
from shared.config import AgentConfig
from shared.errors import ConfigError

SNAPSHOT_ROUNDS: Final = 12  # sampling rounds between two snapshots of a simulated host


@dataclass(frozen=True, kw_only=True)
class HostBundle:
    """A host's ports. `after_round(n)` runs in the sampling thread after the n-th round; `ask` answers commands of the simulation."""

    hypervisor: Hypervisor
    reader: HostReader
    after_round: Callable[[int], None] = lambda _: None
    ask: Callable[[str], Any] | None = None
    collector_seconds: Callable[[], Mapping[str, float]] = dict  # collector -> duration of its newest run
    close: Callable[[], None] = field(default=lambda: None)
    dirty_rates: DirtyRates | None = None  # None = they cannot be measured here
    migrator: Migrator | None = None  # None = VMs of this host cannot be moved; see agent.service.movers


def open_host(config: AgentConfig, clock: Clock) -> HostBundle:
    """Raises ConfigError (what is configured cannot work here) or HostError (it does not work now)."""
    return _simulated(config, clock) if config.hypervisor == "simulated" else _libvirt(config, clock)


def _libvirt(config: AgentConfig, clock: Clock) -> HostBundle:
    from agent.adapters.libvirt_host import open_libvirt_host  # noqa: PLC0415  # a simulated host runs without libvirt-python
    from agent.adapters.libvirt_migration import LibvirtMigrator  # noqa: PLC0415

    hypervisor, reader = open_libvirt_host(
        libvirt_uri=config.libvirt_uri,
        network_namespace=config.network_namespace,
        proc_root=config.proc_root,
        cgroup_root=config.cgroup_root,
        cpu_commit_ratio=config.cpu_commit_ratio,
        memory_commit_ratio=config.memory_commit_ratio,
        memory_reserve_bytes=config.memory_reserve_bytes,
        net_bits_per_s=config.net_bits_per_s,
        uplink=config.uplink,
        perf=config.sampling.perf,
        guest_probe_s=config.sampling.guest_probe_s,
        clock=clock,
    )
    watched = _Watched(reader, hypervisor.look)
    chosen: HostReader = _OnClock(watched, clock) if config.clock.speed else watched

    def collector_seconds() -> Mapping[str, float]:
        return {name: stat.seconds for name, stat in reader.collector_stats.copy().items()}

    migrator = LibvirtMigrator(
        config.libvirt_uri,
        config.host_id,
        peer_to_peer=config.migration.peer_to_peer,
        migrate_uri=config.migration.migrate_uri,
        clock=clock,
    )

    def close() -> None:
        migrator.close()
        hypervisor.close()

    return HostBundle(
        hypervisor=hypervisor,
        reader=chosen,
        collector_seconds=collector_seconds,
        close=close,
        migrator=migrator,
        dirty_rates=hypervisor.collectors.dirty,
    )


class _Watched:
    """A reader whose every round somebody looks at, and may add to its failures."""

    def __init__(self, reader: HostReader, look: Callable[[RawHost], RawHost]) -> None:
        self._reader, self._look = reader, look

    def subsample(self) -> None:
        self._reader.subsample()

    def read(self) -> RawHost:
        return self._look(self._reader.read())


class _OnClock:
    """A real host under a clock that is not the machine's (tests): guests stamp their readings with real time."""

    def __init__(self, reader: HostReader, clock: Clock) -> None:
        self._reader, self._clock = reader, clock

    def read(self) -> RawHost:
        raw = self._reader.read()
        offset_ns = self._clock.wall_ns() - time.time_ns()
        return msgspec.structs.replace(raw, vms=tuple(_shifted(vm, offset_ns) for vm in raw.vms))

    def subsample(self) -> None:
        self._reader.subsample()


def _shifted(vm: RawVm, offset_ns: int) -> RawVm:
    stamp_ns = vm.memory_reading_wall_ns
    return vm if stamp_ns is None else msgspec.structs.replace(vm, memory_reading_wall_ns=stamp_ns + offset_ns)


def _simulated(config: AgentConfig, clock: Clock) -> HostBundle:
    from agent.adapters.simulated_host import SimulatedHost  # noqa: PLC0415
    from agent.adapters.simulated_migration import SimulatedMigrator  # noqa: PLC0415
    from agent.adapters.workload import Workload  # noqa: PLC0415

    if not config.workload:
        raise ConfigError('workload: required when hypervisor = "simulated"')
    saved = Path(config.state_dir) / "simulated-host.snapshot"

    def now() -> tuple[int, int]:
        wall_ns = clock.wall_ns()
        return wall_ns, wall_ns  # the simulation's clock never jumps, so it serves as both

    movable = bool(config.migration.targets)
    snapshot = saved.read_bytes() if saved.exists() else None
    host = SimulatedHost(Workload.load(Path(config.workload)), now, snapshot=snapshot, movable=movable)
    migrator = SimulatedMigrator(host, Path(config.state_dir), clock) if movable else None

    def save() -> None:
        fresh = saved.with_suffix(".new")
        fresh.write_bytes(host.snapshot())
        fresh.replace(saved)

    def after_round(n: int) -> None:
        if n % SNAPSHOT_ROUNDS == 0:
            save()

    def ask(command: str) -> Any:
        if command == "reset":
            host.reset_truth()
            return {}
        return host.truth()

    return HostBundle(hypervisor=host, reader=host, after_round=after_round, ask=ask, close=save, migrator=migrator)
