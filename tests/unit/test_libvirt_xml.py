"""Domain definitions as libvirt 9 writes them: limits, capabilities, policy; and the arithmetic of quotas and error codes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_capabilities import HostFacts, domain_of
from agent.adapters.libvirt_connection import translate
from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from agent.adapters.libvirt_levers import LEAST_QUOTA_US, quota_in_force, quota_us
from agent.adapters.libvirt_xml import parse_definition
from shared.errors import ConfigError, HostError, Refusal
from shared.model import Capabilities, Mode, Policy, Priority
from shared.refusal import RefusalCode
from shared.units import MIB, UNLIMITED

BALLOON = "<memballoon model='virtio'><stats period='5'/></memballoon>"
FILE_SYSTEMS = {"/": "ext4", "/images/shared": "nfs4", "/images/share": "xfs"}
TAP = "<interface type='bridge'><target dev='vnet0'/>{}</interface>"


def xml(
    devices: str = BALLOON + TAP.format(""),
    top: str = "",
    vcpu: str = "<vcpu placement='static' current='2'>4</vcpu>",
    machine: str = "pc-i440fx-7.2",
    kind: str = "kvm",
    arch: str = "x86_64",
) -> str:
    return f"""<domain type='{kind}' id='1'><name>web</name><uuid>d6245080-ba16-4159-a164-55b2a2603dac</uuid>{top}
<memory unit='KiB'>262144</memory><currentMemory unit='KiB'>131072</currentMemory>{vcpu}
<os><type arch='{arch}' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>"""


def capabilities(*args: str, **kwargs: str) -> Capabilities:
    return domain_of(parse_definition(xml(*args, **kwargs)), HostFacts(file_systems=FILE_SYSTEMS)).capabilities


CD = "<disk type='file' device='cdrom'>{}<target dev='sda'/></disk>"
DISK = "<disk type='{}' device='disk'><source {}/><target dev='vda'/>{}</disk>"
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='{}'/></channel>"
VIRTIO_MEM = """<memory model='virtio-mem'><target><size unit='KiB'>65536</size><node>0</node><block unit='KiB'>2048</block>
<requested unit='KiB'>8192</requested><current unit='KiB'>{}</current></target><alias name='virtiomem0'/></memory>"""
DIMM = "<memory model='dimm'><target><size unit='KiB'>131072</size><node>0</node></target><alias name='{}'/></memory>"
ROOM = "<maxMemory slots='{}' unit='KiB'>{}</maxMemory><cpu><numa><cell id='0' memory='262144' unit='KiB'/></numa></cpu>"
VCPUS = """<vcpus><vcpu id='0' enabled='yes' hotpluggable='no'/><vcpu id='1' enabled='yes' hotpluggable='{}'/>
<vcpu id='2' enabled='no' hotpluggable='yes'/></vcpus>"""
WHOLE = (
    BALLOON
    + TAP.format("")
    + DISK.format("network", "protocol='rbd' name='pool/web'", "")
    + AGENT.format("connected")
    + VIRTIO_MEM.format(8192)
)


def test_whole_domain_can_do_everything() -> None:
    definition = parse_definition(xml(WHOLE, top=ROOM.format(4, 1048576) + VCPUS.format("yes")))
    assert (definition.vcpus, definition.vcpus_max, definition.vcpus_removable) == (2, 4, 1)
    assert (definition.taps, definition.balloon_period_s, definition.disk_limit_bytes_per_s) == (("vnet0",), 5, UNLIMITED)
    assert domain_of(definition, HostFacts(perf=None)).capabilities == Capabilities(**dict.fromkeys(Capabilities.__struct_fields__))
    assert parse_definition(xml(vcpu="<vcpu>3</vcpu>")).vcpus == 3


def test_memory_is_the_balloons_without_what_is_plugged_in() -> None:
    """libvirt's <memory> holds the whole of it: 256 MiB = 64 of virtio-mem + 128 of a DIMM of ours + what is left."""
    definition = parse_definition(xml(VIRTIO_MEM.format(6144) + DIMM.format("ua-tidegate-3"), top=ROOM.format(2, 655360)))
    domain = domain_of(definition, HostFacts())
    assert (definition.memory_max_bytes, definition.virtio_mem_bytes, definition.dimm_bytes) == (64 * MIB, 6 * MIB, 128 * MIB)
    assert (domain.virtio_mem_max_bytes, domain.dimm_max_bytes) == (64 * MIB, (128 + 384) * MIB)
    owners = parse_definition(xml(DIMM.format("ua-other-3") + DIMM.format("dimm0"), top=ROOM.format(2, 655360)))
    assert (owners.memory_max_bytes, owners.dimm_bytes, owners.dimm_slots_free) == (256 * MIB, 0, 0)
    assert domain_of(owners, HostFacts()).dimm_max_bytes == 0


@pytest.mark.parametrize(
    ("field", "reason", "changes"),
    [
        ("balloon", "no balloon", {"devices": ""}),
        ("balloon", "no balloon", {"devices": "<memballoon model='none'/>"}),
        ("balloon", "passed-through", {"devices": BALLOON + "<hostdev mode='subsystem' type='pci'/>"}),
        ("balloon", "passed-through", {"devices": BALLOON + "<interface type='vdpa'/>"}),
        ("balloon", "locked", {"top": "<memoryBacking><locked/></memoryBacking>"}),
        ("balloon", "huge pages", {"top": "<memoryBacking><hugepages/></memoryBacking>"}),
        ("balloon", "encrypted", {"top": "<launchSecurity type='sev'/>"}),
        ("vcpu_hot_add", "single vCPU", {"vcpu": "<vcpu>1</vcpu>"}),
        ("vcpu_hot_add", "microvm", {"machine": "microvm"}),
        ("vcpu_hot_add", "aarch64", {"arch": "aarch64"}),
        ("vcpu_unplug", "TCG never reports", {"kind": "qemu"}),
        ("vcpu_unplug", "s390x", {"arch": "s390x"}),
        ("vcpu_unplug", "since the start", {"top": VCPUS.format("no")}),
        ("vcpu_unplug", "single vCPU", {"vcpu": "<vcpu>1</vcpu>"}),
        ("vcpu_offline", "no channel", {}),
        ("guest_agent", "no guest agent is connected", {"devices": AGENT.format("disconnected")}),
        ("shape_rx", "no tap", {"devices": BALLOON}),
        ("shape_tx", "2 interfaces", {"devices": TAP.format("") + TAP.format("")}),
        ("shape_tx", "<bandwidth>", {"devices": TAP.format("<bandwidth><inbound average='1000'/></bandwidth>")}),
        ("shape_tx", "Open vSwitch", {"devices": TAP.format("<virtualport type='openvswitch'/>")}),
        ("shape_rx", "vhost-user", {"devices": "<interface type='vhostuser'/>"}),
        ("net_rate", "SR-IOV", {"devices": "<interface type='hostdev'/>"}),
        ("virtio_mem", "no virtio-mem", {}),
        ("dimm", "<maxMemory", {}),
        ("dimm", "NUMA cell", {"top": "<maxMemory slots='4' unit='KiB'>1048576</maxMemory>"}),
        ("dimm", "slots are taken", {"top": ROOM.format(1, 1048576), "devices": DIMM.format("dimm0")}),
        ("dimm", "no room", {"top": ROOM.format(4, 300000)}),
        ("disk_limit", "no disk", {}),
        ("disk_limit", "no disk", {"devices": "<disk type='vhostuser' device='disk'><source/><target dev='vda'/></disk>"}),
        ("disk_limit", "vda has an <iotune>", {"devices": DISK.format("file", "", "<iotune><read_iops_sec>5</read_iops_sec></iotune>")}),
        ("migrate", "passed-through", {"devices": BALLOON + "<hostdev mode='subsystem' type='pci'/>"}),
        ("migrate", "USB device", {"devices": "<hostdev mode='subsystem' type='usb'/>"}),
        ("migrate", "SR-IOV", {"devices": BALLOON + "<interface type='hostdev'/>"}),
        ("migrate", "pinned to CPUs", {"top": "<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>"}),
        ("migrate", "NUMA nodes 0-1", {"top": "<numatune><memory mode='strict' nodeset='0-1'/></numatune>"}),
        ("migrate", "shares memory", {"devices": "<shmem name='x'/>"}),
        ("migrate", "directory", {"devices": "<filesystem type='mount'/>"}),
        ("migrate", "NVDIMM", {"devices": "<memory model='nvdimm'/>"}),
        ("migrate", "disk vda is a file on this host only (ext4)", {"devices": DISK.format("file", "file='/images/web.raw'", "")}),
        ("migrate", "NVMe", {"devices": DISK.format("nvme", "type='pci'", "")}),
        ("migrate", "CD or floppy drive sda", {"devices": CD.format("<source file='/images/x.iso'/>")}),
    ],
)
def test_what_a_domain_cannot_do_has_a_reason(field: str, reason: str, changes: dict[str, str]) -> None:
    assert reason in (getattr(capabilities(**changes), field) or "")


@pytest.mark.parametrize(
    "devices",
    [
        DISK.format("file", "file='/images/shared/web.raw'", ""),
        DISK.format("block", "dev='/dev/mapper/web'", ""),
        DISK.format("network", "protocol='rbd' name='pool/web'", ""),
        CD.format(""),
        VIRTIO_MEM.format(0),
    ],
)
def test_what_does_not_keep_a_domain_from_moving(devices: str) -> None:
    assert capabilities(devices, top="<memoryBacking><hugepages/></memoryBacking>").migrate is None


def test_reasons_of_the_host_come_through_cut_to_a_label() -> None:
    facts = HostFacts(cpu_quota="no quota", disk_weight="x" * 400, memory_high="v1", balloon_driver="silent", perf="no PMU")
    able = domain_of(parse_definition(xml(WHOLE)), facts).capabilities
    assert (able.cpu_quota, able.disk_weight, able.memory_high) == ("no quota", "x" * 256, "v1")
    assert (able.balloon, able.perf, able.net_rate) == ("silent", "no PMU", None)


def test_agent_without_a_shaper_says_so() -> None:
    assert "shapes no traffic" in (domain_of(parse_definition(xml()), HostFacts(shaping=False)).capabilities.shape_rx or "")


@pytest.mark.parametrize(
    ("disks", "limit"),
    [
        (["<total_bytes_sec>5000</total_bytes_sec>"], 5000),
        (["<read_bytes_sec>1</read_bytes_sec><write_bytes_sec>2</write_bytes_sec>", "<total_bytes_sec>10</total_bytes_sec>"], 13),
        (["<read_bytes_sec>1</read_bytes_sec>"], UNLIMITED),
        (["<total_bytes_sec>5000</total_bytes_sec>", ""], UNLIMITED),
        ([], UNLIMITED),
        (["<total_bytes_sec>70</total_bytes_sec><group_name>tidegate</group_name>"] * 2, 70),
        (["<total_bytes_sec>70</total_bytes_sec><group_name>tidegate</group_name>", ""], UNLIMITED),
        (["<total_bytes_sec>1000000000000000</total_bytes_sec><group_name>tidegate</group_name>"], UNLIMITED),
    ],
)
def test_disk_limit_counts_only_when_every_disk_has_one(disks: list[str], limit: int) -> None:
    text = "".join(f"<disk type='file' device='disk'><iotune>{disk}</iotune></disk>" for disk in disks)
    assert parse_definition(xml(text + "<disk type='file' device='cdrom'/>")).disk_limit_bytes_per_s == limit


def policy(attributes: str) -> tuple[Policy, str | None]:
    definition = parse_definition(xml(top=f"<metadata><x:policy xmlns:x='urn:tidegate:policy:1' {attributes}/></metadata>"))
    return definition.policy, definition.policy_error


def test_policy_metadata() -> None:
    assert policy("priority='Critical' client='acme' cpu_floor_millicores='250'") == (
        Policy(priority=Priority.CRITICAL, client="acme", cpu_floor_millicores=250),
        None,
    )
    assert policy("client='acme' application='shop'") == (Policy(client="acme", application="shop"), None)
    assert policy("mode='observe' size_quantile_permille='950'") == (
        Policy(mode=Mode.OBSERVE, excluded=True, size_quantile_permille=950),
        None,
    )
    assert policy("mode='reactive'") == (Policy(mode=Mode.REACTIVE), None)
    assert policy("excluded='true' priority='2'") == (Policy(excluded=True, priority=Priority.HIGH), None)
    other = parse_definition(xml(top="<metadata><policy xmlns='urn:other' priority='high'/></metadata>"))
    assert (other.policy, other.policy_error) == (Policy(), None)


@pytest.mark.parametrize(
    "attributes", ["priority='urgent'", "cpu_flor_millicores='250'", "memory_floor_bytes='-1'", "cpu_floor_millicores='1.5'"]
)
def test_unreadable_policy_excludes_the_vm_and_says_why(attributes: str) -> None:
    found, error = policy(attributes)
    assert found == Policy(excluded=True)
    assert error is not None and "cpu_floor_millicores" in error


@pytest.mark.parametrize("text", ["", "<domain/>", "<domain", "<domain><uuid>x</uuid></domain>"])
def test_no_definition(text: str) -> None:
    with pytest.raises(ValueError, match="domain XML"):
        parse_definition(text)


@given(vcpus=st.integers(1, 512), millicores=st.integers(1, 1_000_000))
def test_quota_survives_being_divided_among_vcpus(vcpus: int, millicores: int) -> None:
    each = quota_us(millicores, vcpus)
    if each >= LEAST_QUOTA_US:
        read = quota_in_force({"vcpu_quota": each, "vcpu_period": 100_000, "global_quota": -1, "global_period": 100_000}, vcpus)
        assert read == millicores or vcpus > 99, "half a µs for each of 100 vCPUs is half a millicore"
        assert abs((read or 0) - millicores) <= 1 + vcpus // 200


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"vcpu_quota": 25_000, "vcpu_period": 100_000}, 500),
        ({"vcpu_quota": 25_000, "vcpu_period": 50_000, "global_quota": 30_000, "global_period": 100_000}, 300),
        ({"vcpu_quota": -1, "vcpu_period": 100_000}, UNLIMITED),
        ({"vcpu_quota": 17_592_186_044_415, "vcpu_period": 100_000}, UNLIMITED),
        ({"cpu_shares": 1024}, None),
    ],
)
def test_quota_in_force(parameters: dict[str, int], expected: int | None) -> None:
    assert quota_in_force(parameters, 2) == expected


def test_errors_of_libvirt_become_ours() -> None:
    refusal = translate(42, "Domain not found", "uri")
    assert isinstance(refusal, Refusal) and refusal.code is RefusalCode.UNKNOWN_VM
    assert isinstance(translate(55, "domain is not running", "uri"), Refusal)
    for code, message in (
        (55, "cannot change while migrating"),
        (68, "Timed out during operation: cannot acquire state change lock"),
        (38, "monitor"),
    ):
        error = translate(code, message, "uri")
        assert isinstance(error, HostError) and message in str(error) and "uri" in str(error)


def test_missing_libvirt_python_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "libvirt", None)
    with pytest.raises(ConfigError, match=r"tidegate\[agent,libvirt\]"):
        LibvirtHypervisor("test:///default", RootedFiles())
