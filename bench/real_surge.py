"""A daily surge on real guests: how much work they do in its first five minutes, against a guest that nothing limits, in one run.

Two libvirtd of their own with QEMU guests (tests/realhost/real_host.py), a coordinator and two agents as processes. Three guests are
alike; the stored week of each knows a surge at 09:05. At 08:59 one stands on a host in mode predictive, one on a host in mode reactive,
both under a quota of a third of what the surge takes; the third is opted out by its policy and has no quota. At 09:05 all three start to
work, and count what they do. Guests run without hardware virtualisation and share this machine's cores, so only the ratios mean anything.

A quota changes in milliseconds and the reactive rule looks every five seconds: it loses the seconds that it takes to see a lone guest
hit its limit, and no more. What prediction is worth where the lever is slow is measured by bench/league.

    python -m bench.real_surge [--quick] [--json FILE]          (root; quick: the clock runs ten times as fast)
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any, Final

from agent.adapters.libvirt_host import open_libvirt_host
from bench.report import Figure, options, publish
from coordinator.demo import DemoOptions, Fleet
from shared.model import Mode
from shared.plan import StepKind
from shared.units import MIB

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/realhost"))
real: Any = importlib.import_module("real_host")  # the tests' own machinery, which is no package
scene: Any = importlib.import_module("surge_scene")

LOAD: Final = (250, 2)  # per mille of a CPU, threads: three such guests fit on two cores beside what controls them
WINDOW_S: Final = 300.0
QUICK_SPEED: Final = 10.0
EXCLUDED: Final = '<t:policy xmlns:t="urn:tidegate:policy:1" excluded="true"/>'


def measure(speed: float) -> tuple[dict[str, float], dict[str, int]]:
    """Work of each guest in the surge's first five minutes as a share of the free one's, and the quotas in force when it began."""
    with real.two_hosts() as (first, second), Fleet(DemoOptions()) as fleet:
        guests = {
            "predictive": first.define_guest("predictive", vcpus_max=1, memory_mib=128, ip="10.78.0.2/24"),
            "reactive": second.define_guest("reactive", vcpus_max=1, memory_mib=128, ip="10.78.1.2/24"),
            "free": first.define_guest("free", vcpus_max=1, memory_mib=128, ip="10.78.2.2/24", metadata=EXCLUDED),
        }
        cost = millicores(guests["free"])
        surge = (cost, 60.0 * MIB, *scene.QUIET[2:])
        hypervisors = {}
        for name, host in (("predictive", first), ("reactive", second)):
            hypervisors[name], _ = open_libvirt_host(libvirt_uri=host.uri, network_namespace=host.netns)
            hypervisors[name].domains()
            hypervisors[name].submit(guests[name].vm_id, StepKind.CPU_QUOTA, int(cost / 3))
        ids = tuple(guest.vm_id for guest in guests.values())
        past = scene.history(ids, dict.fromkeys(ids, surge))
        scene.configure(fleet, {"a": (first, Mode.PREDICTIVE), "b": (second, Mode.REACTIVE)}, past, speed)
        scene.start(fleet)
        real.wait_for(lambda: scene.clock_s(fleet) >= scene.SURGE_S, "09:05", 600.0)
        quotas = {name: each.allocation(guests[name].vm_id).cpu_quota_millicores or 0 for name, each in hypervisors.items()}
        before = {name: guest.work() for name, guest in guests.items()}
        for guest in guests.values():
            guest.cpu(*LOAD)
        time.sleep(WINDOW_S / speed)
        done = {name: guest.work() - before[name] for name, guest in guests.items()}
        for each in hypervisors.values():
            each.close()
    return {name: work / max(done["free"], 1) for name, work in done.items() if name != "free"}, quotas


def millicores(guest: Any, seconds: float = 10.0) -> float:
    """What the surge costs the host's CPU here, emulation included: QEMU's own time while an unlimited guest works."""
    stat = Path(f"/proc/{(guest.host.directory / 'run' / 'qemu' / f'{guest.name}.pid').read_text().strip()}/stat")
    guest.cpu(*LOAD)
    began, used = time.monotonic(), ticks(stat)
    time.sleep(seconds)
    spent = (ticks(stat) - used) / real.os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)
    guest.cpu(0, 0)
    return float(1000.0 * spent)


def ticks(stat: Path) -> int:
    """User and system time of a process, in clock ticks."""
    fields = stat.read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    """Run once; without root, QEMU and libvirt say why not."""
    arguments = options(__doc__ or "").parse_args()
    reason = real.reason_to_skip()
    if reason is not None:
        print(f"not measured: {reason}")
        return
    shares, quotas = measure(QUICK_SPEED if arguments.quick else 1.0)
    print(f"quotas in force at 09:05, millicores: {quotas}")
    least = 0.85 if arguments.quick else 0.95  # half a real minute instead of five: start and stop of the count weigh more
    figures = [
        Figure(
            name="work in the surge's first five minutes, predictive / uncapped guest",
            value=shares["predictive"],
            unit="ratio",
            bar=f">= {least:g}",
            holds=shares["predictive"] >= least,
            row=11,
        ),
        Figure(name="the same, reactive / uncapped guest", value=shares["reactive"], unit="ratio", row=11),
    ]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
