"""KVM's own counters of a VM from libvirt's bulk statistics (`vcpu.N.NAME.sum`), summed over its vCPUs. Pure.

What they tell: why a vCPU left the guest (exits and their kinds), how long it slept and polled (halt_*), how often another vCPU of the VM
was preempted meanwhile. They exist since libvirt 8.9 with QEMU 7.1 and only under KVM: under TCG the result is empty.
Getting them is a round trip to each QEMU (VIR_DOMAIN_STATS_VCPU), so they are not for every round.

NAMES is what is taken, where it exists: libvirt passes on whatever the kernel has, and a newer kernel must not grow our metrics.
Source: Documentation/virt/kvm/api.rst (KVM_GET_STATS_FD), arch/x86/kvm/x86.c and virt/kvm/kvm_main.c for the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NAMES: Final = frozenset(
    {
        *("exits", "halt_exits", "io_exits", "irq_exits", "mmio_exits", "signal_exits", "irq_window_exits", "nmi_window_exits"),
        *("request_irq_exits", "irq_injections", "nmi_injections", "hypercalls", "insn_emulation", "insn_emulation_fail"),
        *("halt_wait_ns", "halt_poll_success_ns", "halt_poll_fail_ns", "halt_wakeup", "halt_attempted_poll", "halt_successful_poll"),
        *("pf_taken", "pf_fixed", "pf_guest", "pf_mmio_spte_created", "tlb_flush", "invlpg", "l1d_flush", "host_state_reload"),
        *("preemption_reported", "preemption_other", "directed_yield_attempted", "directed_yield_successful", "nested_run"),
    }
)
_LARGEST: Final = 2**63


def parse_kvm(stats: Mapping[str, object]) -> dict[str, int]:
    """Counter -> sum over vCPUs, of one domain's statistics; empty where there are none.

    A vCPU that was unplugged takes its counts along, so the sum may fall: no rate across that, as with every counter.
    """
    sums: dict[str, int] = {}
    for key, value in stats.items():
        if not (key.endswith(".sum") and key.startswith("vcpu.")):
            continue
        parts = key.split(".")
        if len(parts) == 4 and parts[2] in NAMES and isinstance(value, int) and 0 <= value < _LARGEST:
            sums[parts[2]] = sums.get(parts[2], 0) + value
    return sums
