"""Check of traffic control: what shaping needs is really made once, in a network namespace of this thread's own that ends with it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Final

from agent.doctor.finding import Finding, fail, ok, warn
from shared.config import AgentConfig
from shared.errors import HostError, Refusal
from shared.plan import StepKind

_CLONE_NEWNET: Final = 0x40000000
_DEVICE: Final = "tgi-doctor"
_PROBE_BITS_PER_S: Final = 100_000_000  # any ceiling will do


def shaping(config: AgentConfig) -> Iterator[Finding]:
    """HTB towards the guest, IFB and redirection from it, bpf, fq_codel leaves. Must run in a thread that ends soon after."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        yield warn("shaping", f"not tried: no network namespace of its own ({reason})", "sudo tidegate-agent doctor")
        return
    yield from _try_all()
    if config.network_namespace:
        try:
            os.close(os.open(config.network_namespace, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            mend = "`ip netns list` shows those that exist; correct network_namespace"
            yield fail("shaping", f"network_namespace {config.network_namespace}: {error.strerror}", mend)


def _try_all() -> Iterator[Finding]:
    from pyroute2 import IPRoute  # noqa: PLC0415  # slow to import
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    from agent.adapters.netlink_shaper import NetlinkShaper  # noqa: PLC0415
    from agent.adapters.shaping_netlink import TrafficControl, load_marking_program  # noqa: PLC0415

    with IPRoute() as routes:
        try:
            routes.link("add", ifname=_DEVICE, kind="ifb")
        except NetlinkError as error:
            yield fail("shaping", f"IFB: {error}: what guests send cannot be shaped", "modprobe ifb; CONFIG_IFB")
            return
        index = routes.link_lookup(ifname=_DEVICE)[0]
        routes.link("set", index=index, state="up")
        shaper, control = NetlinkShaper(), TrafficControl()
        try:
            yield _try(shaper, StepKind.NET_RX, "HTB towards the guest", "modprobe sch_htb; CONFIG_NET_SCH_HTB")
            mend = "modprobe -a sch_ingress cls_u32 act_mirred; CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED"
            yield _try(shaper, StepKind.NET_TX, "IFB and redirection from the guest", mend)
            program = load_marking_program(0)
            if program is None:
                says = "no bpf: a filter for each VM tells whose packet it is, which costs more the more VMs there are"
                yield warn("shaping", says, "run with CAP_BPF and CAP_NET_ADMIN; CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF")
            else:
                os.close(program)
                yield ok("shaping", "bpf tells whose packet it is")
            shaper.release(_DEVICE)
            control.add_root(index, 0x10000, 0)
            if control.add_fq_codel(index, 0x10001, 5000):
                yield ok("shaping", "fq_codel leaves")
            else:
                says = "no fq_codel: leaves are plain queues, a busy VM sees more latency at its ceiling"
                yield warn("shaping", says, "modprobe sch_fq_codel; CONFIG_NET_SCH_FQ_CODEL")
        except HostError as error:
            yield warn("shaping", f"leaves could not be tried: {error}")
        finally:
            control.close()
            shaper.close()


def _try(shaper: object, kind: StepKind, what: str, mend: str) -> Finding:
    from agent.adapters.netlink_shaper import NetlinkShaper  # noqa: PLC0415

    assert isinstance(shaper, NetlinkShaper)
    try:
        shaper.set_ceiling(_DEVICE, kind, _PROBE_BITS_PER_S)
        seen = shaper.ceiling(_DEVICE, kind)
    except (HostError, Refusal) as error:
        return fail("shaping", f"{what}: {error}", mend)
    if seen != _PROBE_BITS_PER_S:
        return fail("shaping", f"{what}: the kernel shows {seen} bits/s for {_PROBE_BITS_PER_S}", "report this, with the kernel's version")
    return ok("shaping", what)
