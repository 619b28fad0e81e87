"""Every setting of the agent and the coordinator, with its unit, bounds, default and description, as frozen structs.

Invariant: a config that exists is valid; `shared.config_file.load` checks it once at the edge and the rest of the code trusts it.
The descriptions below are the source of docs/settings.md (tests/unit/test_docs.py compares the two).
"""

from __future__ import annotations

import platform
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from shared.clock import Clock, ClockAnchor, ScaledClock, SystemClock
from shared.config_access import AccessConfig
from shared.config_alerts import AlertsConfig
from shared.config_file import load
from shared.config_placing import PlacementConfig, PowerConfig, by_host
from shared.config_sla import ObjectivesConfig
from shared.model import Identifier, Mode, Priority
from shared.units import GIB, MIB, SAMPLE_PERIOD_S

__all__ = [
    "AGENT_PREFIX",
    "COORDINATOR_PREFIX",
    "AccessConfig",
    "AgentConfig",
    "AlertsConfig",
    "ClockConfig",
    "CoordinatorConfig",
    "CycleConfig",
    "ForecastConfig",
    "GuardConfig",
    "ListenConfig",
    "MigrationConfig",
    "PenaltyTable",
    "PlacementConfig",
    "PowerConfig",
    "PriorityTable",
    "QuantileTable",
    "ReactiveConfig",
    "SamplingConfig",
    "SizingConfig",
    "SlaConfig",
    "TlsConfig",
    "by_host",
    "load",
]

# Environment variables override the file: TIDEGATE_AGENT_GUARD_STEP_TIMEOUT_S=60 sets guard.step_timeout_s.
AGENT_PREFIX: Final = "TIDEGATE_AGENT"
COORDINATOR_PREFIX: Final = "TIDEGATE_COORDINATOR"

LogLevel = Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least severe log line that is written to stderr")]


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificate files (PEM) of this process; all three or none."""

    ca: Annotated[str, Meta(description="certificates of the authority that the other side must be signed by")] = ""
    certificate: Annotated[str, Meta(description="our certificate; an agent's names its host_id")] = ""
    key: Annotated[str, Meta(description="our private key, readable by nobody else")] = ""

    def __post_init__(self) -> None:
        if any((self.ca, self.certificate, self.key)) and not self:
            raise ValueError("tls: ca, certificate and key belong together: set all three or none")

    def __bool__(self) -> bool:
        return bool(self.ca and self.certificate and self.key)


class ClockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ties simulated to real time; all zero = the machine's clock. Written by `tidegate demo`, not by hand."""

    simulated_start_ns: Annotated[int, Meta(ge=0, le=2**62, description="simulated Unix time at real_start_ns")] = 0
    real_start_ns: Annotated[int, Meta(ge=0, le=2**62, description="real Unix time at which simulated time starts")] = 0
    speed: Annotated[float, Meta(ge=0, le=10_000, description="simulated seconds per real second")] = 0.0

    def __post_init__(self) -> None:
        given = [self.simulated_start_ns > 0, self.real_start_ns > 0, self.speed > 0]
        if any(given) and not all(given):
            raise ValueError("clock: simulated_start_ns, real_start_ns and speed belong together: set all three or none")
        if 0 < self.speed < 0.01:
            raise ValueError(f"clock.speed = {self.speed!r}: allowed 0 (machine's clock) or 0.01 to 10000")

    def open(self) -> Clock:
        """The clock that these settings describe."""
        if self.speed == 0:
            return SystemClock()
        anchor = ClockAnchor(simulated_start_ns=self.simulated_start_ns, real_start_ns=self.real_start_ns, speed=self.speed)
        return ScaledClock(anchor)


class ListenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a server listens."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 = any free one, printed at start")] = 0


class GuardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the host refuses, whatever the coordinator says."""

    cpu_floor_millicores: Annotated[int, Meta(ge=10, le=2**30, description="no VM's CPU quota goes below this")] = 100
    memory_floor_bytes: Annotated[int, Meta(ge=16 * MIB, le=2**53, description="no VM's balloon goes below this")] = 128 * MIB
    net_floor_bits_per_s: Annotated[int, Meta(ge=1_000, le=2**53, description="no VM's rx or tx ceiling goes below this")] = 1_000_000
    disk_floor_bytes_per_s: Annotated[int, Meta(ge=4_096, le=2**53, description="no VM's disk limit goes below this")] = MIB
    disk_floor_ops_per_s: Annotated[int, Meta(ge=1, le=2**53, description="no VM's limit of disk operations goes below this")] = 50
    memory_shrink_max_permille: Annotated[int, Meta(ge=1, le=1000, description="largest cut of memory in one step")] = 50
    cpu_shrink_max_permille: Annotated[int, Meta(ge=1, le=1000, description="largest cut of CPU or network in one step")] = 500
    shrink_cooldown_s: Annotated[int, Meta(ge=0, le=86_400, description="wait between two shrinks of one VM and resource")] = 60
    shrink_after_grow_s: Annotated[int, Meta(ge=0, le=86_400, description="no shrink of a resource this long after it grew")] = 120
    steps_per_vm_per_minute: Annotated[int, Meta(ge=1, le=1000, description="most steps for one VM within a minute")] = 12
    steps_per_host_per_minute: Annotated[int, Meta(ge=1, le=100_000, description="most steps on the host within a minute")] = 240
    reading_max_age_s: Annotated[int, Meta(ge=1, le=3600, description="an older reading of a VM forbids shrinking it")] = 30
    working_set_margin_permille: Annotated[
        int, Meta(ge=0, le=10_000, description="memory kept above the measured working set, of that working set")
    ] = 100
    backoff_initial_s: Annotated[int, Meta(ge=1, le=86_400, description="wait after a VM's first failed step; doubles each time")] = 30
    backoff_max_s: Annotated[int, Meta(ge=1, le=86_400, description="longest wait after failed steps")] = 3600
    step_timeout_s: Annotated[int, Meta(ge=1, le=3600, description="a step not seen in force after this long has failed")] = 30
    unplug_timeout_s: Annotated[
        int, Meta(ge=1, le=86_400, description="a vCPU or DIMM that the guest has not let go of after this long stays")
    ] = 300
    memory_grow_max_permille: Annotated[int, Meta(ge=1, le=10_000, description="largest growth of the balloon in one step")] = 50
    memory_cut_per_hour_permille: Annotated[
        int, Meta(ge=1, le=1000, description="most of its memory that a VM may lose within an hour")
    ] = 500
    flap_reversals: Annotated[
        int, Meta(ge=0, le=1000, description="turns from growing to shrinking that a VM may make in flap_window_s")
    ] = 2
    flap_window_s: Annotated[int, Meta(ge=60, le=604_800, description="window of flap_reversals")] = 21_600
    blast_radius_permille: Annotated[
        int, Meta(ge=1, le=1000, description="share of the host's VMs that may be cut within a minute; at least one")
    ] = 500
    circuit_failures: Annotated[int, Meta(ge=1, le=10_000, description="failed steps in circuit_window_s that stop shrinks and moves")] = 10
    circuit_window_s: Annotated[int, Meta(ge=10, le=86_400, description="window of circuit_failures")] = 300
    circuit_open_s: Annotated[int, Meta(ge=10, le=86_400, description="how long shrinks and moves stop after too many failures")] = 600
    growth_budget_permille: Annotated[
        int,
        Meta(ge=0, le=100_000, description="growth without a plan that a VM may take per growth_budget_window_s, of what it began with"),
    ] = 1000
    growth_budget_window_s: Annotated[int, Meta(ge=60, le=604_800, description="window of growth_budget_permille")] = 3600
    after_oom_s: Annotated[int, Meta(ge=0, le=2_592_000, description="no shrink this long after the guest killed for want of memory")] = (
        86_400
    )
    foreign_yield_s: Annotated[
        int, Meta(ge=0, le=2_592_000, description="a VM that somebody else changed is left alone this long; 0 = not at all")
    ] = 3600
    lease_s: Annotated[
        int, Meta(ge=60, le=2_592_000, description="without a coordinator for this long, limits go back to the owner's defaults")
    ] = 3600

    def __post_init__(self) -> None:
        if self.backoff_initial_s > self.backoff_max_s:
            raise ValueError(f"guard.backoff_initial_s = {self.backoff_initial_s}: allowed 1 to backoff_max_s ({self.backoff_max_s})")


class ReactiveConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local rules of mode reactive (and the net under mode predictive); they look at current use only."""

    grow_at_permille: Annotated[int, Meta(ge=100, le=1000, description="grow when use passes this share of the value in force")] = 850
    headroom_permille: Annotated[int, Meta(ge=1000, le=10_000, description="a growth aims at use times this")] = 1400
    shrink_window_s: Annotated[int, Meta(ge=60, le=604_800, description="a shrink looks at the largest use of this long")] = 600
    turn_window_s: Annotated[
        int,
        Meta(ge=60, le=604_800, description="a shrink that follows a growth looks at the largest use of this long, or of shrink_window_s"),
    ] = 1800
    planned_cpu_headroom_permille: Annotated[
        int,
        Meta(
            ge=1000,
            le=10_000,
            description="under a live plan, on a host with little left to promise: a growth of CPU aims at use times this",
        ),
    ] = 1200
    planned_memory_grow_at_permille: Annotated[
        int, Meta(ge=100, le=1000, description="under a live plan: grow memory when use passes this share of the value in force")
    ] = 950
    planned_memory_headroom_permille: Annotated[
        int, Meta(ge=1000, le=10_000, description="under a live plan: a growth of memory aims at use times this")
    ] = 1100
    shrink_margin_permille: Annotated[int, Meta(ge=1000, le=10_000, description="a shrink leaves that largest use times this")] = 1250


class MigrationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where this host's owner allows VMs to be moved to, and how."""

    targets: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*=\S+$", max_length=512)], ...],
        Meta(max_length=4096, description='destinations as "HOST_ID=LIBVIRT_URI"; a host that is not named is refused'),
    ] = ()
    peer_to_peer: Annotated[bool, Meta(description="libvirtd talks to libvirtd; false = the agent connects to both")] = True
    migrate_uri: Annotated[
        str, Meta(max_length=512, description="where memory is sent, {host} = destination; empty = libvirt's choice")
    ] = ""
    max_outgoing: Annotated[int, Meta(ge=1, le=64, description="migrations away from this host at a time")] = 2
    bits_per_s_max: Annotated[int, Meta(ge=1_000_000, le=2**50, description="most that one migration may use of the network")] = (
        8_000_000_000
    )
    no_progress_s: Annotated[int, Meta(ge=5, le=86_400, description="a migration that got no nearer for this long is given up")] = 150
    deadline_s: Annotated[int, Meta(ge=10, le=86_400, description="a migration that took this long is given up")] = 1800

    def uri_of(self, host_id: str) -> str | None:
        """libvirt URI of a destination; None when it is not allowed."""
        return next((uri for name, _, uri in (target.partition("=") for target in self.targets) if name == host_id), None)


class SamplingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is read beside the counters that cost next to nothing."""

    subsample_s: Annotated[int, Meta(ge=0, le=30, description="CPU and run delay are also read this often within a period; 0 = not")] = 1
    perf: Annotated[bool, Meta(description="count context switches, migrations, faults and, where the PMU allows, cycles per VM")] = True
    guest_probe_s: Annotated[
        int, Meta(ge=0, le=86_400, description="ask guest agents this often for processes killed for want of memory; 0 = never")
    ] = 60
    starved_permille: Annotated[
        int, Meta(ge=1, le=1000, description="above this CPU pressure of the host the sampling period doubles, up to four times")
    ] = 800


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one `tidegate-agent run`."""

    host_id: Annotated[Identifier, Meta(description="this host's name in the fleet; must be the one in its certificate")] = msgspec.field(
        default_factory=platform.node
    )
    state_dir: Annotated[str, Meta(min_length=1, description="journal, spool and mode pin live here")] = "/var/lib/tidegate-agent"
    socket_path: Annotated[str, Meta(min_length=1, max_length=107, description="UNIX socket of the agent's command line")] = (
        "/run/tidegate-agent/control.sock"
    )
    log_level: LogLevel = "info"
    coordinator_urls: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^wss://[^/\s]+")], ...],
        Meta(max_length=8, description="agents' door of the coordinator, tried in order; empty = work alone"),
    ] = ()
    tls: TlsConfig = TlsConfig()
    hypervisor: Annotated[Literal["libvirt", "simulated"], Meta(description="what runs the VMs")] = "libvirt"
    libvirt_uri: Annotated[str, Meta(min_length=1, description="libvirt connection")] = "qemu:///system"
    network_namespace: Annotated[str, Meta(description="path of the network namespace that holds the taps; empty = the agent's own")] = ""
    sample_period_s: Annotated[int, Meta(ge=1, le=60, description="time between two samples")] = SAMPLE_PERIOD_S
    frame_samples: Annotated[int, Meta(ge=1, le=60, description="samples per frame sent to the coordinator")] = 3
    spool_max_bytes: Annotated[int, Meta(ge=MIB, le=2**40, description="disk for unacknowledged frames; oldest go first")] = 256 * MIB
    default_mode: Annotated[Mode, Meta(description="control mode when neither the host's pin nor the API says otherwise")] = Mode.OBSERVE
    exporter_address: Annotated[
        str, Meta(pattern=r"^$|^[^\s:]+:[0-9]{1,5}$", description="HOST:PORT of /metrics, e.g. 127.0.0.1:9177; empty = off")
    ] = ""
    cgroup_root: Annotated[str, Meta(min_length=1, description="where the cgroup hierarchies are mounted")] = "/sys/fs/cgroup"
    proc_root: Annotated[str, Meta(min_length=1, description="where procfs is mounted")] = "/proc"
    exporter_socket: Annotated[str, Meta(max_length=107, description="UNIX socket that serves /metrics; empty = off")] = ""
    exporter_vm_series: Annotated[bool, Meta(description="export series of every VM, not only of the host and the agent")] = False
    pause_file: Annotated[str, Meta(min_length=1, description="while this file exists, nothing is changed on this host")] = (
        "/etc/tidegate-agent/PAUSE"
    )
    uplink: Annotated[
        str, Meta(max_length=15, description="interface whose counters are the host's network; empty = of the default route")
    ] = ""
    sampling: SamplingConfig = SamplingConfig()
    guard: GuardConfig = GuardConfig()
    reactive: ReactiveConfig = ReactiveConfig()
    migration: MigrationConfig = MigrationConfig()
    workload: Annotated[str, Meta(description="file that describes the simulated VMs; hypervisor simulated only")] = ""
    clock: ClockConfig = ClockConfig()
    cpu_commit_ratio: Annotated[float, Meta(ge=0.1, le=64, description="sum of CPU quotas allowed, per core of the host")] = 4.0
    memory_commit_ratio: Annotated[float, Meta(ge=0.1, le=4, description="sum of balloons allowed, per byte after the reserve")] = 1.0
    memory_reserve_bytes: Annotated[int, Meta(ge=0, le=2**50, description="memory kept for the host itself and QEMU's overhead")] = GIB
    net_bits_per_s: Annotated[int, Meta(ge=1_000_000, le=2**50, description="what the host's uplink carries")] = 10_000_000_000

    def __post_init__(self) -> None:
        if not self.host_id:
            raise ValueError("host_id: the machine has no host name; set host_id (letters, digits, . _ : @ -)")
        if self.hypervisor == "simulated" and not self.workload:
            raise ValueError('workload: required when hypervisor = "simulated"')
        if self.coordinator_urls and not self.tls:
            raise ValueError("tls: ca, certificate and key are required when coordinator_urls is set")


class CycleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the coordinator decides, and on what."""

    bucket_grace_s: Annotated[int, Meta(ge=0, le=240, description="wait for late samples after a 5-minute bucket ends")] = 10
    stale_host_s: Annotated[int, Meta(ge=10, le=3600, description="a host silent for this long counts as full")] = 60
    history_buckets: Annotated[int, Meta(ge=24, le=20_160, description="5-minute buckets that the models learn from")] = 2016
    place_every_cycles: Annotated[int, Meta(ge=1, le=2016, description="decision cycles from one placement to the next")] = 6
    plan_deadline_s: Annotated[int, Meta(ge=30, le=3600, description="a plan not begun after this long is void")] = 600
    aggregates: Annotated[bool, Meta(description="forecast the sums of each host, each client and the fleet too")] = True


class ForecastConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the forecasters are told beside demand, and models too dear for every forecast, which speak for some VMs."""

    holidays: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$")], ...],
        Meta(
            max_length=16,
            description='countries or parts of them whose public holidays count, e.g. ["DE-BY", "AT"]; days begin in time_zone',
        ),
    ] = ()
    challengers: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(
            max_length=16,
            description="models of the slow loop (forecasting.md); one whose extra is missing is left out; [] = none",
        ),
    ] = ("auto_ets", "auto_ces", "auto_arima", "mfles")
    challenge_every_s: Annotated[
        int, Meta(ge=300, le=17_100, description="time from one turn of the challengers to the next, in whole buckets of 300 s")
    ] = 1800
    challenge_cpu_s: Annotated[
        float, Meta(ge=0.1, le=86_400, description="processor time that a turn of the challengers may take, all of them together")
    ] = 30.0


class PriorityTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number per priority."""

    low: Annotated[float, Meta(ge=-10, le=10, description="for VMs of priority low")]
    normal: Annotated[float, Meta(ge=-10, le=10, description="for VMs of priority normal")]
    high: Annotated[float, Meta(ge=-10, le=10, description="for VMs of priority high")]
    critical: Annotated[float, Meta(ge=-10, le=10, description="for VMs of priority critical")]

    def of(self, priority: Priority) -> float:
        """The number for this priority."""
        return (self.low, self.normal, self.high, self.critical)[priority]


class QuantileTable(PriorityTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantile level per priority, within the levels that forecasts carry."""

    low: Annotated[float, Meta(ge=0.5, le=0.99, description="for VMs of priority low")]
    normal: Annotated[float, Meta(ge=0.5, le=0.99, description="for VMs of priority normal")]
    high: Annotated[float, Meta(ge=0.5, le=0.99, description="for VMs of priority high")]
    critical: Annotated[float, Meta(ge=0.5, le=0.99, description="for VMs of priority critical")]


class PenaltyTable(PriorityTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money a minute, one number per priority."""

    low: Annotated[float, Meta(ge=1e-6, le=1e6, description="for VMs of priority low")]
    normal: Annotated[float, Meta(ge=1e-6, le=1e6, description="for VMs of priority normal")]
    high: Annotated[float, Meta(ge=1e-6, le=1e6, description="for VMs of priority high")]
    critical: Annotated[float, Meta(ge=1e-6, le=1e6, description="for VMs of priority critical")]


class SlaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients were promised: the share of their VMs' time in which something may be lacking (their error budget)."""

    budget_permille: Annotated[float, Meta(ge=0.01, le=1000, description="error budget of clients that have none of their own")] = 10.0
    period_s: Annotated[int, Meta(ge=21_600, le=7_776_000, description="time over which a budget holds")] = 604_800
    clients: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^.+=[0-9]+(\.[0-9]+)?$", max_length=300)], ...],
        Meta(max_length=10_000, description='error budgets as "CLIENT=PERMILLE"'),
    ] = ()
    objectives: ObjectivesConfig = ObjectivesConfig()


class SizingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a forecast leads to a change, and how large."""

    confidence_multiplier: Annotated[PriorityTable, Meta(description="act when mean > value in force + this times stddev")] = PriorityTable(
        low=1.0, normal=0.5, high=0.0, critical=-1.0
    )
    price: Annotated[
        float, Meta(ge=0, le=1000, description="price of capacity, of the built-in one: more = leaner; 0 = fixed size_quantile by priority")
    ] = 1.0
    reserve_permille: Annotated[
        int, Meta(ge=0, le=900, description="share of a host that plans leave free for growth under pressure; with a price only")
    ] = 100
    size_quantile: Annotated[QuantileTable, Meta(description="quantile of the forecast peak to give where price is 0")] = QuantileTable(
        low=0.9, normal=0.95, high=0.975, critical=0.99
    )
    shrink_evidence_buckets: Annotated[int, Meta(ge=1, le=2016, description="buckets in a row that agree before a shrink")] = 1
    dead_band_permille: Annotated[int, Meta(ge=0, le=1000, description="smaller changes are left out (share of the value)")] = 20
    flap_reversals: Annotated[int, Meta(ge=0, le=1000, description="turns that plans count on: as the hosts' guard.flap_reversals")] = 2
    flap_window_s: Annotated[int, Meta(ge=60, le=604_800, description="as the hosts' guard.flap_window_s")] = 21_600
    penalty: Annotated[PenaltyTable, Meta(description="money a minute of a VM that lacks all it wants of a resource")] = PenaltyTable(
        low=0.5, normal=1.0, high=2.0, critical=8.0
    )
    critical_pool_permille: Annotated[
        int,
        Meta(ge=0, le=1000, description="share of a host that is its critical VMs'; others borrow what one step takes back"),
    ] = 0
    boot_boost_permille: Annotated[
        int, Meta(ge=0, le=4000, description="CPU and disk on top of the size of a VM that has just booted; of the network half as much")
    ] = 500
    boot_boost_s: Annotated[int, Meta(ge=0, le=86_400, description="for so long; nothing is taken from it meanwhile")] = 600
    move_boost_permille: Annotated[
        int, Meta(ge=0, le=4000, description="CPU, disk and network on top of the size of a VM that was just migrated")
    ] = 250
    move_boost_s: Annotated[int, Meta(ge=0, le=86_400, description="for so long; nothing is taken from it meanwhile")] = 300
    spare_hosts: Annotated[int, Meta(ge=0, le=1, description="1 = growth leaves so much free that any one host of a pool may fail")] = 0


class CoordinatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one `tidegate run`."""

    state_dir: Annotated[str, Meta(min_length=1, description="registry, history and frame log live here")] = "/var/lib/tidegate"
    registry_url: Annotated[
        str, Meta(max_length=2048, description="postgresql://USER@HOST/DATABASE (registry.md); empty = registry.sqlite in state_dir")
    ] = ""
    registry_password_file: Annotated[
        str, Meta(max_length=4096, description="file with the password of registry_url, readable by nobody else; empty = none")
    ] = ""
    log_level: LogLevel = "info"
    listen_agents: Annotated[ListenConfig, Meta(description="agents' door (WebSocket over mutual TLS)")] = ListenConfig(port=7443)
    listen_http: Annotated[ListenConfig, Meta(description="status page, API and metrics")] = ListenConfig(port=8080)
    access: AccessConfig = AccessConfig()
    tls: TlsConfig = TlsConfig()
    ray: Annotated[bool, Meta(description="forecast and place in Ray workers; false = in this process")] = True
    ray_workers: Annotated[int, Meta(ge=1, le=1024, description="least number of forecast shards, one Ray actor each")] = 2
    ray_address: Annotated[str, Meta(description="Ray cluster to join (host:port, token in RAY_AUTH_TOKEN); empty = our own")] = ""
    ray_shard_bytes: Annotated[int, Meta(ge=256 * MIB, le=2**46, description="most memory of a forecast shard, or it is split")] = 2 * GIB
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1, description="seed of everything random (placement search, boosting)")] = 1
    cycle: CycleConfig = CycleConfig()
    forecast: ForecastConfig = ForecastConfig()
    sizing: SizingConfig = SizingConfig()
    placement: PlacementConfig = PlacementConfig()
    power: PowerConfig = PowerConfig()
    sla: SlaConfig = SlaConfig()
    alerts: AlertsConfig = AlertsConfig()
    trace_url: Annotated[
        str,
        Meta(
            pattern=r"^$|^https?://[^/\s@]+(/\S*)?$",
            max_length=512,
            description="where traces of decision cycles are posted (OTLP over HTTP), e.g. http://127.0.0.1:4318/v1/traces; empty = off",
        ),
    ] = ""
    wal_max_bytes: Annotated[int, Meta(ge=MIB, le=2**42, description="disk for frames not yet folded into history")] = 2 * GIB
    history_max_bytes: Annotated[
        int, Meta(ge=16 * MIB, le=2**50, description="space for history; beyond it forecasts go before buckets, the oldest days first")
    ] = 16 * GIB
    history_url: Annotated[
        str,
        Meta(
            pattern=r"^$|^(s3|gs|abfss?)://[^\s]+$",
            max_length=2048,
            description="object store of history (history.md), e.g. s3://BUCKET/PREFIX?region=REGION; empty = history in state_dir",
        ),
    ] = ""
    history_retention_days: Annotated[
        int, Meta(ge=2, le=3660, description="days of buckets that history keeps; of forecasts a quarter as many")
    ] = 42
    max_clock_skew_s: Annotated[
        int, Meta(ge=10, le=86_400, description="a host whose clock is further off than this, either way, is sent away and counts as full")
    ] = 300
    max_agents: Annotated[int, Meta(ge=1, le=100_000, description="connected agents; more are turned away")] = 5000
    events_dir: Annotated[
        str,
        Meta(max_length=4096, description="folder of calendars of scheduled events (*.ics, *.cron), read again on change; empty = none"),
    ] = ""
    time_zone: Annotated[
        str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9._+/-]*$", max_length=64, description="IANA zone of calendar entries that name none")
    ] = "UTC"
    clock: ClockConfig = ClockConfig()
