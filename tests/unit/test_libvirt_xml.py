"""Domain definitions as libvirt 9 writes them: limits, capabilities, policy; and the arithmetic of quotas and error codes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters import libvirt_hypervisor
from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_hypervisor import LEAST_QUOTA_US, LibvirtHypervisor, quota_in_force, quota_us, translate
from agent.adapters.libvirt_xml import domain_of, parse_definition
from shared.errors import ConfigError, HostError, Refusal
from shared.model import Capabilities, Policy, Priority
from shared.refusal import RefusalCode
from shared.units import MIB, UNLIMITED

BALLOON = "<memballoon model='virtio'><stats period='5'/></memballoon>"
TAP = "<interface type='bridge'><target dev='vnet0'/>{}</interface>"


def xml(
    devices: str = BALLOON + TAP.format(""),
    top: str = "",
    vcpu: str = "<vcpu placement='static' current='2'>4</vcpu>",
    machine: str = "pc-i440fx-7.2",
) -> str:
    return f"""<domain type='kvm' id='1'><name>web</name><uuid>d6245080-ba16-4159-a164-55b2a2603dac</uuid>{top}
<memory unit='KiB'>262144</memory><currentMemory unit='KiB'>131072</currentMemory>{vcpu}
<os><type arch='x86_64' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>"""


def capabilities(*args: str, **kwargs: str) -> Capabilities:
    return domain_of(parse_definition(xml(*args, **kwargs)), running=True, shaping=True).capabilities


def test_plain_domain_can_do_everything() -> None:
    definition = parse_definition(xml())
    assert (definition.vcpus, definition.vcpus_max, definition.memory_max_bytes) == (2, 4, 256 * MIB)
    assert (definition.taps, definition.balloon_period_s, definition.disk_limit_bytes_per_s) == (("vnet0",), 5, UNLIMITED)
    assert capabilities() == Capabilities()
    assert parse_definition(xml(vcpu="<vcpu>3</vcpu>")).vcpus == 3


@pytest.mark.parametrize(
    ("field", "reason", "changes"),
    [
        ("balloon", "no balloon", {"devices": ""}),
        ("balloon", "no balloon", {"devices": "<memballoon model='none'/>"}),
        ("balloon", "passed-through", {"devices": BALLOON + "<hostdev mode='subsystem' type='pci'/>"}),
        ("migrate", "passed-through", {"devices": BALLOON + "<interface type='hostdev'/>"}),
        ("balloon", "locked", {"top": "<memoryBacking><locked/></memoryBacking>"}),
        ("balloon", "huge pages", {"top": "<memoryBacking><hugepages/></memoryBacking>"}),
        ("balloon", "encrypted", {"top": "<launchSecurity type='sev'/>"}),
        ("vcpu_hot_add", "single vCPU", {"vcpu": "<vcpu>1</vcpu>"}),
        ("vcpu_hot_add", "microvm", {"machine": "microvm"}),
        ("shape_rx", "no tap", {"devices": BALLOON}),
        ("shape_tx", "2 interfaces", {"devices": TAP.format("") + TAP.format("")}),
        ("shape_tx", "<bandwidth>", {"devices": TAP.format("<bandwidth><inbound average='1000'/></bandwidth>")}),
    ],
)
def test_what_a_domain_cannot_do_has_a_reason(field: str, reason: str, changes: dict[str, str]) -> None:
    assert reason in (getattr(capabilities(**changes), field) or "")


def test_agent_without_a_shaper_says_so() -> None:
    assert "shapes no traffic" in (domain_of(parse_definition(xml()), running=True, shaping=False).capabilities.shape_rx or "")


@pytest.mark.parametrize(
    ("disks", "limit"),
    [
        (["<total_bytes_sec>5000</total_bytes_sec>"], 5000),
        (["<read_bytes_sec>1</read_bytes_sec><write_bytes_sec>2</write_bytes_sec>", "<total_bytes_sec>10</total_bytes_sec>"], 13),
        (["<read_bytes_sec>1</read_bytes_sec>"], UNLIMITED),
        (["<total_bytes_sec>5000</total_bytes_sec>", ""], UNLIMITED),
        ([], UNLIMITED),
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
    assert libvirt_hypervisor.PERIOD_US == 100_000
