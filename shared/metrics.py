"""All metrics that Tidegate exports, as one table per process, and the object through which code sets them.

Invariants: a name or label outside the table is a bug and raises at once; base units; `_total` on counters and only there; a metric
never has more than MAX_SERIES label combinations (further ones are counted under "other"). docs/metrics.md lists the table; a test
compares the two.
Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
MAX_SERIES: Final = 500  # the largest honest set is route x method x status, about 200
OTHER: Final = "other"

Kind = Literal["counter", "gauge", "histogram"]
_FAST: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_SLOW: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metric(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class VmMetric(msgspec.Struct, frozen=True):
    """One row of the table of per-VM gauges: the value is `field` of a VmSample or VmDetail over `per`; a limit may be none."""

    name: str
    help: str
    field: str
    per: int = 1
    limit: bool = False


AGENT_METRICS: Final = (
    Metric("tidegate_agent_samples_total", "counter", "Sampling rounds finished"),
    Metric("tidegate_agent_sample_duration_seconds", "histogram", "Time that one sampling round took", buckets=_FAST),
    Metric("tidegate_agent_vms", "gauge", "VMs in the newest sample"),
    Metric("tidegate_agent_vms_quarantined", "gauge", "VMs left alone because their monitor did not answer in time"),
    Metric("tidegate_agent_collector_success", "gauge", "1 where the collector's newest run succeeded", ("collector",)),
    Metric("tidegate_agent_collector_duration_seconds", "gauge", "Time that the collector's newest run took", ("collector",)),
    Metric("tidegate_agent_spool_bytes", "gauge", "Disk used by frames that are not acknowledged yet"),
    Metric("tidegate_agent_spool_frames", "gauge", "Frames that are not acknowledged yet"),
    Metric("tidegate_agent_spool_dropped_frames_total", "counter", "Frames dropped, oldest first, because the spool was full"),
    Metric("tidegate_agent_link_up", "gauge", "1 while connected to a coordinator"),
    Metric("tidegate_agent_link_connects_total", "counter", "Connections made to a coordinator"),
    Metric("tidegate_agent_steps_total", "counter", "Steps that ended, by lever, outcome and who asked", ("kind", "outcome", "origin")),
    Metric("tidegate_agent_refusals_total", "counter", "Steps and plans refused on this host, by refusal code", ("code",)),
    Metric("tidegate_agent_mode", "gauge", "1 for the control mode in force, 0 for the others", ("mode",)),
    Metric("tidegate_agent_vms_not_exported", "gauge", "VMs without series of their own, because there are too many or it is switched off"),
    Metric("tidegate_agent_paused", "gauge", "1 where the owner, the pause file or the coordinator holds the kill switch", ("by",)),
    Metric("tidegate_agent_steps_in_flight", "gauge", "Steps submitted and not yet ended"),
    Metric("tidegate_agent_cpu_seconds_total", "counter", "CPU time of the agent's own process"),
    Metric("tidegate_agent_resident_memory_bytes", "gauge", "Resident memory of the agent's own process"),
    Metric("tidegate_agent_threads", "gauge", "Threads of the agent's own process"),
    Metric("tidegate_agent_open_fds", "gauge", "Open descriptors of the agent's own process"),
    Metric("tidegate_agent_sample_period_seconds", "gauge", "Time between two sampling rounds; grows while the host starves"),
    Metric("tidegate_agent_sample_timestamp_seconds", "gauge", "Unix time of the newest sample, by the agent's clock"),
    Metric("tidegate_agent_reloads_total", "counter", "Reloads of the configuration, by result: changed or refused", ("result",)),
    Metric("tidegate_agent_coordinator_clock_offset_seconds", "gauge", "Coordinator's clock less the host's when the link came up"),
    Metric("tidegate_agent_host_cpu_cores", "gauge", "CPUs of the host"),
    Metric("tidegate_agent_host_cpu_commit_limit_cores", "gauge", "Most that all CPU quotas may sum up to"),
    Metric("tidegate_agent_host_cpu_used_cores", "gauge", "CPU time used on the host per wall time"),
    Metric("tidegate_agent_host_cpu_steal_cores", "gauge", "CPU time that another hypervisor took from this host per wall time"),
    Metric("tidegate_agent_host_cpu_pressure_ratio", "gauge", "Share of time in which some task of the host waited for a CPU"),
    Metric("tidegate_agent_host_memory_bytes", "gauge", "Memory of the host"),
    Metric("tidegate_agent_host_memory_commit_limit_bytes", "gauge", "Most that all VMs' memory may sum up to"),
    Metric("tidegate_agent_host_memory_available_bytes", "gauge", "Memory available on the host without swapping"),
    Metric("tidegate_agent_host_memory_overhead_bytes", "gauge", "Memory of QEMU processes beyond their guests' own"),
    Metric("tidegate_agent_host_memory_pressure_ratio", "gauge", "Share of time in which some task of the host waited for memory"),
    Metric("tidegate_agent_host_io_pressure_ratio", "gauge", "Share of time in which some task of the host waited for a disk"),
    Metric("tidegate_agent_host_network_receive_bytes_per_second", "gauge", "Received on the uplink"),
    Metric("tidegate_agent_host_network_transmit_bytes_per_second", "gauge", "Sent on the uplink"),
    Metric("tidegate_agent_host_network_drops_per_second", "gauge", "Packets dropped on the uplink"),
)

# Gauges with the labels vm_id and name, where exporter_vm_series is on. They come from the newest sample and die with their VM.
AGENT_VM_METRICS: Final = (
    VmMetric("tidegate_agent_vm_cpu_used_cores", "CPU time used per wall time", "cpu_used_millicores", 1000),
    VmMetric("tidegate_agent_vm_cpu_used_peak_cores", "Largest CPU use of a second within the sample", "cpu_used_peak_millicores", 1000),
    VmMetric("tidegate_agent_vm_cpu_quota_cores", "CPU quota in force; +Inf = none", "cpu_quota_millicores", 1000, limit=True),
    VmMetric("tidegate_agent_vm_cpu_shares", "CPU shares in force (v1 scale)", "cpu_shares"),
    VmMetric("tidegate_agent_vm_cpu_throttled_ratio", "Share of time in which the quota held the VM back", "cpu_throttled_permille", 1000),
    VmMetric(
        "tidegate_agent_vm_cpu_ready_ratio",
        "Time its vCPUs waited for a CPU, less the quota's doing, per wall time",
        "cpu_ready_permille",
        1000,
    ),
    VmMetric("tidegate_agent_vm_cpu_ready_peak_ratio", "Largest such share of a second within the sample", "cpu_ready_peak_permille", 1000),
    VmMetric(
        "tidegate_agent_vm_cpu_pressure_ratio", "Share of time in which some task of it waited for a CPU", "psi_cpu_some_permille", 1000
    ),
    VmMetric(
        "tidegate_agent_vm_memory_pressure_ratio",
        "Share of time in which some task of it waited for memory",
        "psi_memory_some_permille",
        1000,
    ),
    VmMetric(
        "tidegate_agent_vm_memory_full_pressure_ratio",
        "Share of time in which all its tasks waited for memory",
        "psi_memory_full_permille",
        1000,
    ),
    VmMetric(
        "tidegate_agent_vm_io_pressure_ratio", "Share of time in which some task of it waited for a disk", "psi_io_some_permille", 1000
    ),
    VmMetric("tidegate_agent_vm_vcpus", "vCPUs plugged in", "vcpus"),
    VmMetric("tidegate_agent_vm_vcpus_online", "vCPUs that the guest keeps online", "vcpus_online"),
    VmMetric("tidegate_agent_vm_memory_allocated_bytes", "Balloon in force", "memory_allocated_bytes"),
    VmMetric("tidegate_agent_vm_memory_used_bytes", "What the guest itself needs: allocated less usable", "memory_used_bytes"),
    VmMetric("tidegate_agent_vm_memory_usable_bytes", "What the guest could use without swapping", "memory_usable_bytes"),
    VmMetric("tidegate_agent_vm_memory_resident_bytes", "Resident memory of its process on the host", "memory_rss_bytes"),
    VmMetric("tidegate_agent_vm_memory_high_bytes", "memory.high in force; +Inf = none", "memory_high_bytes", 1, limit=True),
    VmMetric("tidegate_agent_vm_memory_reading_age_seconds", "Age of the guest's own memory reading", "memory_reading_age_ms", 1000),
    VmMetric("tidegate_agent_vm_memory_major_faults_per_second", "Major faults", "memory_major_faults_per_s"),
    VmMetric("tidegate_agent_vm_memory_swap_bytes_per_second", "Swapped in and out by the guest", "memory_swap_bytes_per_s"),
    VmMetric("tidegate_agent_vm_memory_dirty_bytes_per_second", "Newest measured dirty rate", "dirty_bytes_per_s"),
    VmMetric("tidegate_agent_vm_oom_kills", "Processes that the guest killed for want of memory within the sample", "guest_oom_kills"),
    VmMetric("tidegate_agent_vm_disk_read_bytes_per_second", "Read from disks", "disk_read_bytes_per_s"),
    VmMetric("tidegate_agent_vm_disk_write_bytes_per_second", "Written to disks", "disk_write_bytes_per_s"),
    VmMetric("tidegate_agent_vm_disk_read_operations_per_second", "Reads", "disk_read_ops_per_s"),
    VmMetric("tidegate_agent_vm_disk_write_operations_per_second", "Writes", "disk_write_ops_per_s"),
    VmMetric("tidegate_agent_vm_disk_latency_seconds", "Mean time of a disk operation", "disk_latency_us", 1000000),
    VmMetric("tidegate_agent_vm_disk_limit_bytes_per_second", "Disk limit in force; +Inf = none", "disk_limit_bytes_per_s", 1, limit=True),
    VmMetric("tidegate_agent_vm_network_receive_bytes_per_second", "Received by the guest", "net_rx_bits_per_s", 8),
    VmMetric("tidegate_agent_vm_network_transmit_bytes_per_second", "Sent by the guest", "net_tx_bits_per_s", 8),
    VmMetric(
        "tidegate_agent_vm_network_receive_drops_per_second",
        "Dropped or over limit at our ceiling towards the guest",
        "net_rx_dropped_per_s",
    ),
    VmMetric(
        "tidegate_agent_vm_network_transmit_drops_per_second", "Dropped or over limit at our ceiling from the guest", "net_tx_dropped_per_s"
    ),
    VmMetric(
        "tidegate_agent_vm_network_receive_limit_bytes_per_second",
        "Ceiling towards the guest; +Inf = none",
        "net_rx_ceil_bits_per_s",
        8,
        limit=True,
    ),
    VmMetric(
        "tidegate_agent_vm_network_transmit_limit_bytes_per_second",
        "Ceiling from the guest; +Inf = none",
        "net_tx_ceil_bits_per_s",
        8,
        limit=True,
    ),
    VmMetric("tidegate_agent_vm_cpu_periods_per_second", "CFS periods in which the VM ran", "periods_per_s"),
    VmMetric(
        "tidegate_agent_vm_cpu_throttled_periods_ratio", "Share of them in which the quota held it back", "throttled_periods_permille", 1000
    ),
    VmMetric(
        "tidegate_agent_vm_cpu_full_pressure_ratio", "Share of time in which all its tasks waited for a CPU", "psi_cpu_full_permille", 1000
    ),
    VmMetric("tidegate_agent_vm_memory_current_bytes", "Charged to its control group", "memory_current_bytes"),
    VmMetric("tidegate_agent_vm_memory_anon_bytes", "Of that, anonymous memory", "memory_anon_bytes"),
    VmMetric("tidegate_agent_vm_memory_file_bytes", "Of that, cached files", "memory_file_bytes"),
    VmMetric("tidegate_agent_vm_memory_unused_bytes", "Free in the guest", "memory_unused_bytes"),
    VmMetric("tidegate_agent_vm_memory_high_events_per_second", "Times that memory.high was passed", "memory_high_events_per_s"),
    VmMetric("tidegate_agent_vm_memory_refaults_per_second", "Pages read again soon after they were reclaimed", "memory_refaults_per_s"),
    VmMetric("tidegate_agent_vm_network_receive_packets_per_second", "Packets received by the guest", "net_rx_packets_per_s"),
    VmMetric("tidegate_agent_vm_network_transmit_packets_per_second", "Packets sent by the guest", "net_tx_packets_per_s"),
    VmMetric("tidegate_agent_vm_network_receive_tap_drops_per_second", "Dropped by the tap towards the guest", "net_rx_tap_dropped_per_s"),
    VmMetric("tidegate_agent_vm_network_transmit_tap_drops_per_second", "Dropped by the tap from the guest", "net_tx_tap_dropped_per_s"),
    VmMetric(
        "tidegate_agent_vm_network_receive_overlimits_per_second",
        "Times over limit in our class towards the guest",
        "net_rx_overlimits_per_s",
    ),
    VmMetric(
        "tidegate_agent_vm_network_transmit_overlimits_per_second",
        "Times over limit in our class from the guest",
        "net_tx_overlimits_per_s",
    ),
    VmMetric("tidegate_agent_vm_network_receive_backlog_bytes", "Waiting in our class towards the guest", "net_rx_backlog_bytes"),
    VmMetric("tidegate_agent_vm_network_transmit_backlog_bytes", "Waiting in our class from the guest", "net_tx_backlog_bytes"),
    VmMetric("tidegate_agent_vm_vcpu_task_cores", "CPU time of its vCPU threads, by perf", "task_clock_millicores", 1000),
    VmMetric("tidegate_agent_vm_context_switches_per_second", "Context switches of its vCPU threads", "context_switches_per_s"),
    VmMetric("tidegate_agent_vm_cpu_migrations_per_second", "Moves of its vCPU threads between CPUs", "cpu_migrations_per_s"),
    VmMetric("tidegate_agent_vm_page_faults_per_second", "Page faults of its vCPU threads", "page_faults_per_s"),
    VmMetric("tidegate_agent_vm_cycles_per_second", "CPU cycles", "cycles_per_s"),
    VmMetric("tidegate_agent_vm_instructions_per_second", "Instructions", "instructions_per_s"),
    VmMetric("tidegate_agent_vm_cache_misses_per_second", "Cache misses", "cache_misses_per_s"),
    VmMetric("tidegate_agent_vm_instructions_per_cycle", "Instructions per cycle (IPC)", "instructions_per_kilocycle", 1000),
)
AGENT_VM_KVM: Final = Metric(
    "tidegate_agent_vm_kvm_events_per_second", "gauge", "KVM's own counters per second, by libvirt's name", ("vm_id", "name", "counter")
)

COORDINATOR_METRICS: Final = (
    Metric("tidegate_agents_connected", "gauge", "Agents connected now"),
    Metric("tidegate_hosts", "gauge", "Known hosts by state: alive, or stale and so counted as full", ("state",)),
    Metric("tidegate_vms", "gauge", "Known VMs"),
    Metric("tidegate_frames_received_total", "counter", "Frames made durable"),
    Metric("tidegate_frames_duplicate_total", "counter", "Frames received again and not counted again"),
    Metric("tidegate_frames_rejected_total", "counter", "Frames that broke the protocol, by reason", ("reason",)),
    Metric("tidegate_http_requests_total", "counter", "Answers of the HTTP API, by method and status", ("method", "status")),
    Metric("tidegate_audit_rows_total", "counter", "Rows added to the audit, by result: ok, replayed or a refusal's code", ("result",)),
    Metric("tidegate_streams", "gauge", "Live update streams open now"),
    Metric("tidegate_streams_dropped_total", "counter", "Streams cut off because their reader was too slow"),
    Metric(
        "tidegate_signals_total",
        "counter",
        "Readings of applications, one per VM: taken, replaced or late; refused: as they came",
        ("outcome",),
    ),
    Metric("tidegate_signal_log_bytes", "gauge", "Disk used by applications' readings not yet in history; at most 256 MiB"),
    Metric("tidegate_wal_bytes", "gauge", "Disk used by frames not yet folded into history"),
    Metric("tidegate_readings_dropped_total", "counter", "Readings that cannot be, taken for unknown, by column", ("column",)),
    Metric("tidegate_agents_clock_offset_seconds", "gauge", "Largest offset of a host's clock from the coordinator's, either way"),
    Metric("tidegate_history_bytes", "gauge", "Space used by history"),
    Metric("tidegate_history_pending_writes", "gauge", "Writes that history does not hold yet"),
    Metric("tidegate_history_write_failures_total", "counter", "Writes that history's store refused; each is tried again"),
    Metric("tidegate_history_forecasts_dropped_total", "counter", "Forecasts not stored because history was behind"),
    Metric("tidegate_history_dropped_partitions_total", "counter", "Day partitions given up to retention or to history's bound"),
    Metric("tidegate_history_damaged_parts", "gauge", "Parts of history found damaged and set aside since the start"),
    Metric("tidegate_store_pending_writes", "gauge", "Writes to the registry that are not durable yet"),
    Metric("tidegate_store_write_failures_total", "counter", "Writes to the registry that failed and are tried again"),
    Metric("tidegate_store_unreachable_seconds", "gauge", "Time since a write last got through, 0 while none is waiting in vain"),
    Metric("tidegate_store_held", "gauge", "1 while nothing is decided because it could not be stored"),
    Metric("tidegate_buckets_closed_total", "counter", "5-minute buckets closed"),
    Metric("tidegate_newest_bucket_timestamp_seconds", "gauge", "Start of the newest closed bucket, Unix time of the coordinator's clock"),
    Metric("tidegate_cycle_stage_duration_seconds", "histogram", "Time that one stage of the decision cycle took", ("stage",), _SLOW),
    Metric("tidegate_forecasts_total", "counter", "Forecasts issued, one per VM and resource"),
    Metric(
        "tidegate_forecast_pinball_ratio",
        "gauge",
        "Pinball loss of the last day over the naive forecast's; below 1 is better",
        ("resource",),
    ),
    Metric(
        "tidegate_forecast_coverage_ratio",
        "gauge",
        "Share of the last day's actuals inside the central 80 % band a step ahead",
        ("resource",),
    ),
    Metric(
        "tidegate_forecast_band_coverage_ratio",
        "gauge",
        "Share of the last day's actuals inside the central 80 or 95 % band, all steps ahead",
        ("resource", "band"),
    ),
    Metric(
        "tidegate_forecast_above_upper_ratio",
        "gauge",
        "Share of the last day's actuals above the 97.5 % bound; .025 is meant",
        ("resource",),
    ),
    Metric("tidegate_hosts_short", "gauge", "Hosts that may not promise what their VMs want within the hour", ("resource",)),
    Metric("tidegate_clients_burning", "gauge", "Clients that use up their SLA error budget too fast"),
    Metric("tidegate_sla_vm_seconds", "gauge", "Minutes of VMs under objectives, in seconds: good, bad or unknown", ("state",)),
    Metric(
        "tidegate_sla_client_compliance_ratio",
        "gauge",
        "Good minutes of those seen within the period, by client and objective",
        ("client", "objective"),
    ),
    Metric(
        "tidegate_sla_client_budget_spent_ratio",
        "gauge",
        "Bad minutes over those that the period allows, by client and objective; above 1 = overdrawn",
        ("client", "objective"),
    ),
    Metric(
        "tidegate_sla_client_burn_ratio",
        "gauge",
        "How far error budgets burn beyond what two windows allow, the largest of the pairs, by client and objective; above 1 = too fast",
        ("client", "objective"),
    ),
    Metric(
        "tidegate_sla_priority_compliance_ratio",
        "gauge",
        "Good minutes of those seen within the period, by priority and objective",
        ("priority", "objective"),
    ),
    Metric(
        "tidegate_sla_priority_budget_spent_ratio",
        "gauge",
        "Bad minutes over those that the period allows, by priority and objective; above 1 = overdrawn",
        ("priority", "objective"),
    ),
    Metric(
        "tidegate_sla_priority_burn_ratio",
        "gauge",
        "How far error budgets burn beyond what two windows allow, the largest of the pairs, by priority and objective; above 1 = too fast",
        ("priority", "objective"),
    ),
    Metric("tidegate_objectives_infeasible", "gauge", "Clients' objectives that cannot be met within the hour, by cause", ("cause",)),
    Metric(
        "tidegate_vms_out_of_calibration", "gauge", "VMs under the reactive rule alone for a forecast out of calibration", ("resource",)
    ),
    Metric("tidegate_forecast_drifts_total", "counter", "Times that the forecasts were found to have worsened, by reason", ("reason",)),
    Metric("tidegate_retrains_total", "counter", "Trainings of the global model, by reason: schedule or that of a drift", ("reason",)),
    Metric("tidegate_migrations_total", "counter", "Moves of migration plans that ended, by how: done, failed, skipped, lost", ("phase",)),
    Metric("tidegate_power_orders_total", "counter", "Hosts told to sleep or wake, by what the switch answered", ("order", "outcome")),
    Metric("tidegate_hosts_power", "gauge", "Hosts by state of their power; only where a power switch is set", ("state",)),
    Metric("tidegate_challenge_turns_total", "counter", "Turns of the challengers: dear models asked about some series"),
    Metric(
        "tidegate_challenge_series_total",
        "counter",
        "Series that challengers were asked about; said = with an answer",
        ("challenger", "said"),
    ),
    Metric("tidegate_challenge_cpu_seconds_total", "counter", "Processor time that challengers took", ("challenger",)),
    Metric("tidegate_challenge_failures_total", "counter", "Kinds of failures in turns of the challengers", ("challenger",)),
    Metric("tidegate_placements_total", "counter", "Placements of the whole fleet, by status; hold = all stays, and why", ("status",)),
    Metric("tidegate_placement_moves", "gauge", "Moves in the newest placement"),
    Metric("tidegate_placement_cost", "gauge", "Money over the coming hour: of what runs now, and as planned", ("state",)),
    Metric("tidegate_placement_gap_ratio", "gauge", "How far the newest placement is above the proven bound, of its cost"),
    Metric("tidegate_plans_total", "counter", "Plans sent to hosts"),
    Metric(
        "tidegate_steps_planned_total",
        "counter",
        "Steps in plans, by lever; shadow = for the record only",
        ("kind", "shadow"),
    ),
    Metric("tidegate_outcomes_total", "counter", "Outcomes reported by hosts", ("kind", "outcome", "origin")),
    Metric("tidegate_receipts_total", "counter", "Receipts written"),
    Metric("tidegate_alerts", "gauge", "Alerts pending or firing, silenced ones included", ("severity", "state")),
    Metric("tidegate_alerts_hidden", "gauge", "Conditions that hold and found no room among alerts.max_active"),
    Metric("tidegate_alert_look_duration_seconds", "histogram", "Time that one look at all rules took", buckets=_FAST),
    Metric(
        "tidegate_alert_notifications_total",
        "counter",
        "Messages about alerts: sent, failed (tried again), or refused for good by their receiver",
        ("receiver", "outcome"),
    ),
    Metric("tidegate_alert_notifications_waiting", "gauge", "Messages about alerts that their receiver has not taken yet", ("receiver",)),
    Metric("tidegate_refusals_total", "counter", "Requests and steps refused by the coordinator, by refusal code", ("code",)),
)


class Rising:
    """Feeds a counter from a total that something else keeps: adds what it grew by since the last look."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last: dict[tuple[str, tuple[str, ...]], float] = {}

    def follow(self, name: str, total: float, **labels: str) -> None:
        """Bring the counter up to `total`."""
        key = (name, tuple(labels.values()))
        grown = total - self._last.get(key, 0)
        if grown > 0:
            self._metrics.add(name, grown, **labels)
            self._last[key] = total


class Metrics:
    """The metrics of one process. Passed to whoever counts something; there is no global registry."""

    def __init__(self, table: Iterable[Metric]) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._rows = {row.name: row for row in table}
        self._made = {row.name: _make(row, self.registry) for row in self._rows.values()}
        self._series: dict[str, set[tuple[str, ...]]] = {name: set() for name in self._rows}

    def add(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter."""
        child = self._child(name, labels)
        assert isinstance(child, Counter), f"{name} is no counter"
        child.inc(amount)

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        child = self._child(name, labels)
        assert isinstance(child, Gauge), f"{name} is no gauge"
        child.set(value)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Add one observation to a histogram."""
        child = self._child(name, labels)
        assert isinstance(child, Histogram), f"{name} is no histogram"
        child.observe(value)

    def choose(self, name: str, label: str, chosen: str, options: Iterable[str]) -> None:
        """Set a gauge to 1 for the chosen label value and to 0 for the other options."""
        for option in options:
            self.set(name, float(option == chosen), **{label: option})

    def render(self) -> bytes:
        """The text of /metrics; its type is CONTENT_TYPE."""
        return generate_latest(self.registry)

    def _child(self, name: str, labels: dict[str, str]) -> Counter | Gauge | Histogram:
        row = self._rows[name]
        if set(labels) != set(row.labels):
            raise KeyError(f"{name} has labels {row.labels}, not {tuple(labels)}")
        if not labels:
            return self._made[name]
        values = tuple(labels[label] for label in row.labels)
        seen = self._series[name]
        if values not in seen and len(seen) >= MAX_SERIES:
            values = (OTHER,) * len(values)
        seen.add(values)
        return self._made[name].labels(*values)


def _make(row: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match row.kind:
        case "counter":
            return Counter(row.name, row.help, row.labels, registry=registry)
        case "gauge":
            return Gauge(row.name, row.help, row.labels, registry=registry)
        case "histogram":
            return Histogram(row.name, row.help, row.labels, registry=registry, buckets=row.buckets)
