"""Plans, steps and outcomes: what the coordinator asks of a host and what the host answers.

Submitted is not done: an Outcome of state VERIFIED means that the host or guest showed the value.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from shared.model import Identifier, Label
from shared.refusal import RefusalCode
from shared.units import UNLIMITED

VALUE_MAX: Final = 2**53  # of any step


class StepKind(StrEnum):
    """The levers. The unit of a step's value follows from the kind."""

    VCPUS = "vcpus"  # count of vCPUs plugged in: hot-add, and ACPI unplug (asynchronous: the guest decides, minutes later perhaps)
    CPU_QUOTA = "cpu_quota"  # millicores over all vCPUs, UNLIMITED = none
    CPU_SHARES = "cpu_shares"  # cgroup v1 shares, 2..262144
    MEMORY = "memory"  # bytes of balloon target
    NET_RX = "net_rx"  # bits/s towards the guest, UNLIMITED = none
    NET_TX = "net_tx"  # bits/s from the guest, UNLIMITED = none
    VCPUS_ONLINE = "vcpus_online"  # count of vCPUs that the guest keeps online, through its agent
    CPU_PERIOD = "cpu_period"  # microseconds of the CFS period, 1,000..1,000,000; the quota's ratio stays
    VIRTIO_MEM = "virtio_mem"  # bytes requested of the domain's virtio-mem devices in sum; the guest may grant less
    DIMM = "dimm"  # bytes plugged in as DIMMs of ours, multiples of 128 MiB
    MEMORY_HIGH = "memory_high"  # bytes above which cgroup v2 reclaims gently from the VM's process, UNLIMITED = none
    DISK_BYTES = "disk_bytes"  # bytes/s over all disks of the VM, both directions, UNLIMITED = none
    DISK_OPS = "disk_ops"  # operations/s over all disks of the VM, UNLIMITED = none
    DISK_WEIGHT = "disk_weight"  # blkio weight, 1..1000, default 100 (v2 scale, as libvirt's)
    NET_TX_RATE = "net_tx_rate"  # bits/s guaranteed from the guest where the uplink is full, 0 = no guarantee
    MIGRATE = "migrate"  # live migration to `target`; value = bits/s it may use, UNLIMITED = all


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One small reversible change of one lever of one VM."""

    id: Identifier
    vm_id: Identifier
    kind: StepKind
    value: Annotated[int, Meta(ge=UNLIMITED, le=VALUE_MAX)]
    before: int | None = None  # value in force when the step was decided; None = not known
    reason: Label = ""  # "forecast_peak", "shrink", "reactive_pressure", "operator", ...
    receipt_id: Label = ""
    target: Label = ""  # MIGRATE only: host_id of the destination
    not_before_ns: int = 0
    deadline_ns: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps for one host. A newer (epoch, sequence) replaces what an older plan has not begun."""

    host_id: Identifier
    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    sequence: Annotated[int, Meta(ge=1, le=2**53)]
    issued_ns: int
    deadline_ns: int
    steps: Annotated[tuple[Step, ...], Meta(max_length=4096)]


class OutcomeState(StrEnum):
    """How a step ended. SHADOWED: mode observe, the guard would have let it pass, nothing was changed."""

    VERIFIED = "verified"
    PARTIAL = "partial"  # clipped by the guard or the guest, `value` says what is in force
    REFUSED = "refused"
    FAILED = "failed"
    UNDONE = "undone"
    SHADOWED = "shadowed"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The host's true answer to one step, its own reactive steps included."""

    step: Step
    state: OutcomeState
    value: int | None = None  # value in force afterwards, read back
    code: RefusalCode | None = None
    detail: Annotated[str, Meta(max_length=1024)] = ""
    started_ns: int = 0
    finished_ns: int = 0
    origin: Label = "plan"  # "plan", "reactive", "autonomy", "operator"
