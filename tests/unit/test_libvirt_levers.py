"""The levers against a libvirt that records what it is asked: what is sent, in which order, and what is refused before anything is sent."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.libvirt_hypervisor import count_vcpus
from agent.adapters.libvirt_levers import LEVERS, Target, divide, quota_in_force, settle_quota
from agent.adapters.libvirt_xml import MOST_THROTTLE, VirtioMem, parse_definition
from shared.errors import Refusal
from shared.model import Priority
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MIB, UNLIMITED

NOW_S = 1_795_305_357
VM = "d6245080-ba16-4159-a164-55b2a2603dac"
POLICY = "<metadata><t:policy xmlns:t='urn:tidegate:policy:1' client='acme' priority='high'/></metadata>"
VCPUS = """<vcpus><vcpu id='0' enabled='yes' hotpluggable='no'/><vcpu id='1' enabled='yes' hotpluggable='yes'/>
<vcpu id='2' enabled='yes' hotpluggable='yes'/></vcpus>"""
ROOM = "<maxMemory slots='3' unit='KiB'>2097152</maxMemory><cpu><numa><cell id='0' memory='262144' unit='KiB'/></numa></cpu>"
TAP = "<interface type='bridge'><target dev='vnet0'/></interface>"
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>"


def disk(name: str, iotune: str = "", device: str = "disk") -> str:
    return f"<disk type='file' device='{device}'><source file='/x'/><target dev='{name}'/><iotune>{iotune}</iotune></disk>"


def ours(limit: int, ops: int = 0) -> str:
    return f"<total_bytes_sec>{limit}</total_bytes_sec><total_iops_sec>{ops}</total_iops_sec><group_name>tidegate</group_name>"


def dimm(number: int, mib: int) -> str:
    return f"<memory model='dimm'><target><size unit='MiB'>{mib}</size></target><alias name='ua-tidegate-{number}'/></memory>"


def virtio_mem(requested_mib: int, size_mib: int = 64) -> str:
    sizes = f"<size unit='MiB'>{size_mib}</size><block unit='KiB'>2048</block><requested unit='MiB'>{requested_mib}</requested>"
    return f"<memory model='virtio-mem'><target>{sizes}<current unit='MiB'>{requested_mib}</current></target></memory>"


class LibvirtError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Libvirt:
    libvirtError = LibvirtError  # noqa: N815  # libvirt's name


class Recorder:
    """Stands for a libvirt domain and for a shaper: every call is recorded; `errors` says which one fails."""

    def __init__(self, parameters: dict[str, int]) -> None:
        self.parameters = {"vcpu_period": 100_000, "vcpu_quota": -1} | parameters
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.errors: dict[str, LibvirtError] = {}

    def schedulerParameters(self) -> dict[str, int]:
        return self.parameters

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> None:
            self.calls.append((name, args))
            if name in self.errors:
                raise self.errors[name]
            if name == "setSchedulerParametersFlags":
                self.parameters |= args[0]

        return call


def target(devices: str = TAP, top: str = "", *, vcpus: int = 3, kind: str = "kvm", **parameters: int) -> Any:
    text = f"""<domain type='{kind}'><name>web</name><uuid>{VM}</uuid>{top}<memory unit='MiB'>1024</memory>
<vcpu current='{vcpus}'>6</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><memballoon model='virtio'/>{devices}</devices></domain>"""
    recorder = Recorder(parameters)
    return Target(
        domain=recorder,
        definition=parse_definition(text),
        libvirt=Libvirt,
        vcpus=vcpus,
        cpu_is_v2=False,
        memory_high=None,
        shaper=recorder,  # type: ignore[arg-type]
        now_s=NOW_S,
    )


def sent(kind: StepKind, value: int, of: Any) -> list[tuple[str, tuple[Any, ...]]]:
    LEVERS[kind](of, value)
    return of.domain.calls


def refused(kind: StepKind, value: int, of: Any) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        LEVERS[kind](of, value)
    assert of.domain.calls == [], "nothing was asked of libvirt"
    return refusal.value


# vCPUs


def owing(vcpus: int, millicores: int, at_s: int = NOW_S) -> str:
    return f"<metadata><o:owed xmlns:o='urn:tidegate:owed:1' vcpus='{vcpus}' millicores='{millicores}' at_s='{at_s}'/></metadata>"


def plain(calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """The calls, of setMetadata only the text."""
    return [args[1] if name == "setMetadata" else (name, args[0]) for name, args in calls]


def test_growth_divides_the_quota_anew() -> None:
    """Killed in between, what is owed stands in the domain and is settled by whoever reads it next."""
    of = target(vcpus=2, vcpu_quota=60_000)
    assert plain(sent(StepKind.VCPUS, 4, of)) == [
        f"<owed vcpus='4' millicores='1200' at_s='{NOW_S}'/>",
        ("setVcpusFlags", 4),
        ("setSchedulerParametersFlags", {"vcpu_period": 100_000, "vcpu_quota": 30_000}),
        None,
    ]
    assert plain(sent(StepKind.VCPUS, 4, target(vcpus=2))) == [("setVcpusFlags", 4)], "nothing is owed without a quota"


def test_owed_quota_is_settled_when_the_vcpus_are_as_many() -> None:
    waiting = target(top=owing(2, 900), vcpus=3, vcpu_quota=30_000)
    settle_quota(waiting)
    assert waiting.domain.calls == [], "three vCPUs still"
    after = target(top=owing(2, 900), vcpus=2, vcpu_quota=30_000)
    settle_quota(after)
    assert plain(after.domain.calls) == [("setSchedulerParametersFlags", {"vcpu_period": 100_000, "vcpu_quota": 45_000}), None]
    late = target(top=owing(2, 900, NOW_S - 3600), vcpus=2, vcpu_quota=30_000)
    settle_quota(late)
    assert late.domain.calls == []


@pytest.mark.parametrize("text", [owing(2, 900).replace("'2'", "'two'"), owing(2, 900).replace("millicores", "cores"), ""])
def test_what_we_did_not_write_is_not_owed(text: str) -> None:
    assert target(top=text).definition.owed is None


def test_unplug_that_the_guest_does_not_answer_in_time_counts_as_accepted() -> None:
    of = target(top=VCPUS, vcpu_quota=30_000)
    of.domain.errors["setVcpusFlags"] = LibvirtError(68, "Timed out during operation: vcpu unplug request timed out. Unplug result must be")
    assert plain(sent(StepKind.VCPUS, 1, of)) == [f"<owed vcpus='1' millicores='900' at_s='{NOW_S}'/>", ("setVcpusFlags", 1)]


@pytest.mark.parametrize(
    ("count", "error"),
    [
        (2, LibvirtError(68, "Timed out during operation: cannot acquire state change lock")),
        (2, LibvirtError(1, "unknown cause")),
        (4, LibvirtError(68, "Timed out during operation: unplug")),
    ],
)
def test_other_errors_of_a_change_of_vcpus_are_errors_and_nothing_is_owed(count: int, error: LibvirtError) -> None:
    of = target(top=VCPUS, vcpu_quota=30_000)
    of.domain.errors["setVcpusFlags"] = error
    with pytest.raises(LibvirtError):
        LEVERS[StepKind.VCPUS](of, count)
    assert plain(of.domain.calls)[-1] is None


def test_a_new_quota_settles_what_was_owed() -> None:
    assert plain(sent(StepKind.CPU_QUOTA, 600, target(top=owing(1, 900))))[-1] is None


@pytest.mark.parametrize(
    ("value", "of", "code", "words"),
    [
        (2, target(kind="qemu", top=VCPUS), RefusalCode.NOT_CAPABLE, "TCG never reports"),
        (2, target(top=VCPUS.replace("yes' hotpluggable='yes", "yes' hotpluggable='no")), RefusalCode.NOT_CAPABLE, "since the start"),
        (2, target(vcpus=5, top=VCPUS), RefusalCode.NOT_CAPABLE, "only 2 can be unplugged"),
        (0, target(top=VCPUS), RefusalCode.INVALID_VALUE, "allowed 1 to 6"),
        (7, target(top=VCPUS), RefusalCode.ABOVE_DOMAIN_MAXIMUM, "maximum is 6"),
    ],
)
def test_vcpus_that_cannot_be(value: int, of: Any, code: RefusalCode, words: str) -> None:
    refusal = refused(StepKind.VCPUS, value, of)
    assert refusal.code is code and words in refusal.detail
    assert refusal.numbers["value"] == value and refusal.numbers["maximum"] == 6


def test_vcpus_online_by_the_guest_agent() -> None:
    assert sent(StepKind.VCPUS_ONLINE, 2, target(AGENT)) == [("setVcpusFlags", (2, 8))]
    assert "no guest agent is connected" in refused(StepKind.VCPUS_ONLINE, 2, target(AGENT.replace("connected", "disconnected"))).detail
    assert refused(StepKind.VCPUS_ONLINE, 4, target(AGENT)).code is RefusalCode.ABOVE_DOMAIN_MAXIMUM
    assert refused(StepKind.VCPUS_ONLINE, 0, target(AGENT)).code is RefusalCode.INVALID_VALUE


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3", 4), ("0-1,3,5-6", 5), ("", 0)])
def test_lists_of_cpus_are_counted(text: str, count: int) -> None:
    assert count_vcpus(text) == count


# CPU time


def test_quota_is_in_the_period_in_force() -> None:
    of = target(vcpus=2, vcpu_period=50_000)
    assert sent(StepKind.CPU_QUOTA, 500, of) == [("setSchedulerParametersFlags", ({"vcpu_period": 50_000, "vcpu_quota": 12_500}, 1))]
    assert quota_in_force(of.domain.parameters, 2) == 500
    assert refused(StepKind.CPU_QUOTA, 39, target(vcpus=2, vcpu_period=50_000)).numbers["least"] == 40


@given(
    quota=st.integers(1_000, 10_000_000),
    old=st.sampled_from([10_000, 50_000, 100_000, 1_000_000]),
    new=st.integers(1_000, 1_000_000),
    vcpus=st.integers(1, 64),
)
def test_period_keeps_the_quotas_ratio(quota: int, old: int, new: int, vcpus: int) -> None:
    of = target(vcpus=vcpus if vcpus <= 6 else 6, vcpu_quota=quota, vcpu_period=old)
    try:
        LEVERS[StepKind.CPU_PERIOD](of, new)
    except Refusal as refusal:
        assert quota * new / old < 1_000 and refusal.code is RefusalCode.INVALID_VALUE
        assert quota * refusal.numbers["least"] / old >= 999.5
    else:
        written = of.domain.parameters
        assert written["vcpu_period"] == new
        assert written["vcpu_quota"] / new == pytest.approx(quota / old, rel=1 / 1_900)  # half a µs of 1,000 is lost at most


def test_period_of_a_vm_without_quota_leaves_it_without() -> None:
    assert sent(StepKind.CPU_PERIOD, 20_000, target()) == [("setSchedulerParametersFlags", ({"vcpu_period": 20_000}, 1))]


# Memory


def test_balloon_does_not_count_dimms_of_ours() -> None:
    """libvirt does: 512 MiB of balloon beside a DIMM of 128 are 640 to it. The maximum is without the DIMM as well."""
    assert sent(StepKind.MEMORY, 512 * MIB, target(dimm(0, 128), ROOM)) == [("setMemoryFlags", (640 * 1024, 1))]
    refusal = refused(StepKind.MEMORY, 897 * MIB, target(dimm(0, 128), ROOM))
    assert refusal.code is RefusalCode.ABOVE_DOMAIN_MAXIMUM and refusal.numbers["maximum"] == 896 * MIB


def requested(calls: list[tuple[str, tuple[Any, ...]]]) -> list[int]:
    assert all(name == "updateDeviceFlags" and "<current" not in args[0] for name, args in calls)
    return [int(re.findall(r"<requested unit=\"KiB\">(\d+)<", args[0])[0]) // 1024 for _, args in calls]


def test_virtio_mem_fills_one_device_after_the_other() -> None:
    both = virtio_mem(0) + virtio_mem(0)
    assert requested(sent(StepKind.VIRTIO_MEM, 96 * MIB, target(both))) == [64, 32]
    assert requested(sent(StepKind.VIRTIO_MEM, 96 * MIB, target(virtio_mem(64) + virtio_mem(0)))) == [32]
    assert requested(sent(StepKind.VIRTIO_MEM, 10 * MIB, target(virtio_mem(64) + virtio_mem(32)))) == [10, 0]
    assert refused(StepKind.VIRTIO_MEM, 130 * MIB, target(both)).numbers == {"value": 130 * MIB, "maximum": 128 * MIB}
    assert refused(StepKind.VIRTIO_MEM, 0, target()).code is RefusalCode.NOT_CAPABLE


@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4), share=st.floats(0, 1), now=st.floats(0, 1))
def test_division_among_devices_comes_to_the_size_within_a_block_each(sizes: list[int], share: float, now: float) -> None:
    block = 2 * MIB
    devices = tuple(
        VirtioMem(size_bytes=n * block, block_bytes=block, requested_bytes=int(n * now) * block, current_bytes=0, xml="") for n in sizes
    )
    size = int(share * sum(sizes) * block)
    parts = divide(devices, size)
    assert all(part % block == 0 and 0 <= part <= device.size_bytes for device, part in parts)
    assert abs(sum(part for _, part in parts) - size) < block


def test_dimms_come_one_for_what_is_missing() -> None:
    ((name, args),) = sent(StepKind.DIMM, 384 * MIB, target(dimm(3, 128), ROOM))
    assert name == "attachDeviceFlags" and "262144" in args[0] and "ua-tidegate-4" in args[0]


def test_dimms_leave_newest_first() -> None:
    three = dimm(10, 256) + dimm(2, 128) + dimm(0, 128)  # in any order: their numbers tell their age
    calls = sent(StepKind.DIMM, 128 * MIB, target(three, ROOM))
    assert [re.findall(r"ua-tidegate-(\d+)", args[0])[0] for _, args in calls] == ["10", "2"]
    assert "268435456 and 536870912 can be reached" in refused(StepKind.DIMM, 384 * MIB, target(three, ROOM)).detail


@pytest.mark.parametrize(
    ("value", "of", "code", "words"),
    [
        (100 * MIB, target(top=ROOM), RefusalCode.INVALID_VALUE, "multiples of 134217728"),
        (-128 * MIB, target(top=ROOM), RefusalCode.INVALID_VALUE, "-134217728"),
        (2048 * MIB, target(top=ROOM), RefusalCode.ABOVE_DOMAIN_MAXIMUM, "allows 1073741824"),
        (128 * MIB, target(), RefusalCode.NOT_CAPABLE, "<maxMemory"),
        (512 * MIB, target(dimm(0, 128) + dimm(1, 128) + dimm(2, 128), ROOM), RefusalCode.NOT_CAPABLE, "slots are taken"),
    ],
)
def test_dimms_that_cannot_be(value: int, of: Any, code: RefusalCode, words: str) -> None:
    refusal = refused(StepKind.DIMM, value, of)
    assert refusal.code is code and words in refusal.detail and refusal.numbers["value"] == value


def test_memory_high_is_libvirts_soft_limit() -> None:
    assert sent(StepKind.MEMORY_HIGH, 512 * MIB, target()) == [("setMemoryParameters", ({"soft_limit": 512 * 1024}, 1))]
    assert sent(StepKind.MEMORY_HIGH, UNLIMITED, target()) == [("setMemoryParameters", ({"soft_limit": 9007199254740991}, 1))]


# Disks


def throttles(calls: list[tuple[str, tuple[Any, ...]]]) -> list[tuple[str, int, int, str]]:
    assert {name for name, _ in calls} <= {"setBlockIoTune"}
    return [(a[0], a[1]["total_bytes_sec"], a[1]["total_iops_sec"], a[1].get("group_name", "")) for _, a in calls]


def test_disks_join_a_group_before_it_is_limited() -> None:
    """Killed after any of these calls, all disks are limited or none is."""
    two = disk("vda") + disk("vdb") + disk("sda", device="cdrom")
    assert throttles(sent(StepKind.DISK_BYTES, 5000, target(two))) == [("vdb", MOST_THROTTLE, 0, "tidegate"), ("vda", 5000, 0, "tidegate")]


def test_limits_of_bytes_and_operations_stand_side_by_side() -> None:
    two = disk("vda", ours(5000)) + disk("vdb", ours(5000))
    assert throttles(sent(StepKind.DISK_OPS, 70, target(two))) == [("vda", 5000, 70, "tidegate")]
    both = disk("vda", ours(5000, 70)) + disk("vdb", ours(5000, 70))
    assert throttles(sent(StepKind.DISK_BYTES, UNLIMITED, target(both))) == [("vda", 0, 70, "tidegate")]


def test_a_disk_that_was_added_joins_with_the_limit_in_force() -> None:
    calls = sent(StepKind.DISK_BYTES, 8000, target(disk("vda", ours(5000)) + disk("vdb")))
    assert throttles(calls) == [("vdb", 5000, 0, "tidegate"), ("vda", 8000, 0, "tidegate")]


def test_disks_leave_after_the_group_was_freed() -> None:
    two = disk("vda", ours(5000)) + disk("vdb", ours(5000))
    assert throttles(sent(StepKind.DISK_BYTES, UNLIMITED, target(two))) == [
        ("vda", MOST_THROTTLE, 0, "tidegate"),
        ("vda", 0, 0, ""),
        ("vdb", 0, 0, ""),
    ]
    assert sent(StepKind.DISK_BYTES, UNLIMITED, target(disk("vda"))) == []


@pytest.mark.parametrize(
    "iotune", ["<read_bytes_sec>5</read_bytes_sec>", "<total_iops_sec>5</total_iops_sec><group_name>gold</group_name>"]
)
def test_an_owners_limit_is_left_alone(iotune: str) -> None:
    refusal = refused(StepKind.DISK_OPS, 100, target(disk("vda") + disk("vdb", iotune)))
    assert refusal.code is RefusalCode.FOREIGN_LIMIT and "vdb" in refusal.detail


def test_disk_values_that_cannot_be() -> None:
    assert refused(StepKind.DISK_BYTES, 0, target(disk("vda"))).code is RefusalCode.INVALID_VALUE
    assert refused(StepKind.DISK_OPS, MOST_THROTTLE + 1, target(disk("vda"))).code is RefusalCode.INVALID_VALUE
    assert refused(StepKind.DISK_OPS, 5, target(disk("sda", device="cdrom"))).code is RefusalCode.NOT_CAPABLE
    assert refused(StepKind.DISK_WEIGHT, 1001, target()).numbers == {"value": 1001, "least": 1, "most": 1000}


# Network


def test_network_levers_name_the_client_first() -> None:
    calls = sent(StepKind.NET_TX_RATE, 5_000_000, target(TAP, POLICY))
    assert calls == [("assign", ("vnet0", "acme", Priority.HIGH)), ("set_rate", ("vnet0", 5_000_000))]
    assert sent(StepKind.NET_RX, 9_000_000, target()) == [("set_ceiling", ("vnet0", StepKind.NET_RX, 9_000_000))]
    shaped = target("<interface type='bridge'><target dev='vnet0'/><bandwidth/></interface>")
    assert refused(StepKind.NET_TX, 9_000_000, shaped).code is RefusalCode.FOREIGN_SHAPING
    assert refused(StepKind.NET_TX_RATE, 0, target("")).code is RefusalCode.NOT_CAPABLE


def test_every_kind_has_a_lever_and_a_migration_is_none() -> None:
    assert LEVERS.keys() == set(StepKind)
    assert refused(StepKind.MIGRATE, UNLIMITED, target()).code is RefusalCode.NOT_CAPABLE
