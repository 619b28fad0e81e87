"""Brings the agent's own metrics up to date from the Picture: its cost, its collectors, its host, its link, its mode.

Why only when somebody scrapes: an agent that nobody asks must not spend its CPU on answers (listing a thousand descriptors takes a
millisecond). Invariant: what is not known is NaN, never 0.
"""

from __future__ import annotations

import math
import os
import resource
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from agent.service.picture import Picture
from agent.service.vm_series import MAX_VMS, render_vms
from shared.metrics import Metrics, Rising
from shared.model import Mode
from shared.units import NS_PER_S

PAUSE_HOLDERS: Final = ("owner", "file", "coordinator")
_PAGE_BYTES: Final = resource.getpagesize()

# metric -> (field of HostSample, how many of the field's unit make one of the metric's)
HOST_GAUGES: Final[Mapping[str, tuple[str, float]]] = {
    "tidegate_agent_host_cpu_used_cores": ("cpu_used_millicores", 1000),
    "tidegate_agent_host_cpu_steal_cores": ("cpu_steal_permille", 1000),
    "tidegate_agent_host_memory_available_bytes": ("memory_available_bytes", 1),
    "tidegate_agent_host_memory_overhead_bytes": ("memory_overhead_bytes", 1),
    "tidegate_agent_host_cpu_pressure_ratio": ("psi_cpu_some_permille", 1000),
    "tidegate_agent_host_memory_pressure_ratio": ("psi_memory_some_permille", 1000),
    "tidegate_agent_host_io_pressure_ratio": ("psi_io_some_permille", 1000),
    "tidegate_agent_host_network_receive_bytes_per_second": ("net_rx_bits_per_s", 8),
    "tidegate_agent_host_network_transmit_bytes_per_second": ("net_tx_bits_per_s", 8),
    "tidegate_agent_host_network_drops_per_second": ("net_dropped_per_s", 1),
}


class Gauges:
    """Publishes into `metrics`. `collector_seconds` gives collector -> duration of its newest run."""

    def __init__(self, metrics: Metrics, picture: Picture, collector_seconds: Callable[[], Mapping[str, float]]) -> None:
        self._metrics, self._picture, self._collector_seconds = metrics, picture, collector_seconds
        self._rising = Rising(metrics)
        capacity = picture.core.capacity
        metrics.set("tidegate_agent_host_cpu_cores", capacity.cpu_millicores / 1000)
        metrics.set("tidegate_agent_host_memory_bytes", capacity.memory_bytes)
        metrics.set("tidegate_agent_host_cpu_commit_limit_cores", capacity.cpu_commit_millicores / 1000)
        metrics.set("tidegate_agent_host_memory_commit_limit_bytes", capacity.memory_commit_bytes)

    def page(self) -> bytes:
        """What /metrics shows, brought up to date."""
        picture = self._picture
        self._agent()
        self._newest_round()
        self._cost()
        page = self._metrics.render()
        if not picture.config.exporter_vm_series or picture.sample is None:
            return page
        return page + render_vms(picture.sample.vms, picture.details(), {domain.vm_id: domain.name for domain in picture.domains})

    def _agent(self) -> None:
        picture, metrics = self._picture, self._metrics
        spool, core = picture.spool, picture.core
        self._rising.follow("tidegate_agent_spool_dropped_frames_total", spool.dropped_frames)
        metrics.set("tidegate_agent_spool_bytes", spool.bytes_used)
        metrics.set("tidegate_agent_spool_frames", spool.frames)
        metrics.set("tidegate_agent_link_up", float(core.link_up))
        metrics.set("tidegate_agent_vms_quarantined", len(picture.calls.stuck))
        metrics.set("tidegate_agent_steps_in_flight", core.in_flight)
        metrics.choose("tidegate_agent_mode", "mode", core.mode, Mode)
        holders = picture.paused_by()
        for holder in PAUSE_HOLDERS:
            metrics.set("tidegate_agent_paused", float(holder in holders), by=holder)
        offset_ms = picture.clock_offset_ms
        metrics.set("tidegate_agent_coordinator_clock_offset_seconds", math.nan if offset_ms is None else offset_ms / 1000)

    def _newest_round(self) -> None:
        picture, metrics = self._picture, self._metrics
        for collector, seconds in self._collector_seconds().items():
            metrics.set("tidegate_agent_collector_duration_seconds", seconds, collector=collector)
            metrics.set("tidegate_agent_collector_success", float(collector not in picture.failures), collector=collector)
        metrics.set("tidegate_agent_sample_period_seconds", picture.period_s)
        exported = MAX_VMS if picture.config.exporter_vm_series else 0
        sample = picture.sample
        metrics.set("tidegate_agent_vms_not_exported", math.nan if sample is None else max(0, len(sample.vms) - exported))
        metrics.set("tidegate_agent_sample_timestamp_seconds", math.nan if sample is None else sample.wall_ns / NS_PER_S)
        for metric, (field, scale) in HOST_GAUGES.items():
            value = None if sample is None else getattr(sample, field)
            metrics.set(metric, math.nan if value is None else value / scale)

    def _cost(self) -> None:
        self._rising.follow("tidegate_agent_cpu_seconds_total", time.process_time())
        self._metrics.set("tidegate_agent_threads", threading.active_count())
        statm = Path("/proc/self/statm").read_text(encoding="ascii").split()
        self._metrics.set("tidegate_agent_resident_memory_bytes", int(statm[1]) * _PAGE_BYTES)
        # Since Linux 6.2 its size is their number; to list the thousands that sampling keeps open costs a third of all that the agent uses.
        descriptors = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))  # noqa: PTH116, PTH208  # cheap, names only
        self._metrics.set("tidegate_agent_open_fds", descriptors)
