"""10,000 hostile domain definitions: a policy that cannot be read excludes its VM and says why; what is no definition is a ValueError.

Half are whole definitions with hostile policy metadata, half are definitions with bytes, tags or numbers broken.
"""

from __future__ import annotations

import random
import string
from xml.sax.saxutils import quoteattr

import msgspec
import pytest

from agent.adapters.libvirt_capabilities import HostFacts, domain_of
from agent.adapters.libvirt_xml import parse_definition
from shared.model import Domain, Policy

INPUTS = 10_000
BATCHES = 10
FACTS = HostFacts(file_systems={"/": "ext4"})
FIELDS = Policy.__struct_fields__
NUMBERS = (
    "-1",
    "1e3",
    "nan",
    "inf",
    "0x10",
    " 5",
    "5 ",
    "٣",
    "9" * 400,
    "9007199254740993",
    "1.5",
    "",
    "true",
    "None",
    "1_000",
    "+5",
    "--5",
)
WORDS = ("urgent", "CRITICAL ", "0", "4", "-1", "critical\x7f", "lo", "<low>", "'\"&", "x" * 5000)
WHOLE = """<domain type='kvm' id='1'><name>web</name><uuid>d6245080-ba16-4159-a164-55b2a2603dac</uuid>
<metadata><t:policy xmlns:t='urn:tidegate:policy:1'{policy}</metadata><maxMemory slots='4' unit='KiB'>1048576</maxMemory>
<memory unit='KiB'>262144</memory><vcpu placement='static' current='2'>4</vcpu>
<vcpus><vcpu id='0' enabled='yes' hotpluggable='no'/><vcpu id='1' enabled='yes' hotpluggable='yes'/></vcpus>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><cpu><numa><cell id='0' memory='262144' unit='KiB'/></numa></cpu>
<numatune><memory mode='strict' nodeset='0'/></numatune><devices><memballoon model='virtio'><stats period='5'/></memballoon>
<disk type='file' device='disk'><source file='/a.raw'/><target dev='vda'/><iotune><total_bytes_sec>5</total_bytes_sec></iotune></disk>
<interface type='bridge'><target dev='vnet0'/></interface>
<memory model='virtio-mem'><target><size unit='KiB'>65536</size><requested unit='KiB'>8192</requested></target></memory>
<memory model='dimm'><target><size unit='KiB'>131072</size></target><alias name='ua-tidegate-1'/></memory></devices></domain>"""


def policy(rng: random.Random) -> tuple[str, str, str]:
    """A policy element from its attributes on, the attribute that is hostile, and its text."""
    name, text = rng.choice(
        (
            (rng.choice([field for field in FIELDS if field.endswith(("_millicores", "_bytes", "_per_s"))]), rng.choice(NUMBERS)),
            ("priority", rng.choice([word for word in WORDS if word.isprintable()])),
            (f"{rng.choice(FIELDS)}_{rng.choice(string.ascii_lowercase)}", "5"),
            ("excluded", rng.choice(("yes", "2", "maybe", "", "TRUE!"))),
        )
    )
    return f" {name}={quoteattr(text)}/>", name, text


def broken(rng: random.Random) -> str:
    text = WHOLE.format(policy=rng.choice(("/>", f" cpu_floor_millicores={quoteattr(rng.choice(NUMBERS))}/>", ">deep<x/></t:policy>")))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        match rng.randrange(6):
            case 0:
                text = text[:at] + text[at + rng.randint(1, 30) :]
            case 1:
                text = text[:at] + rng.choice(("<", ">", "&", "\x00", "]]>", "<!--", "&x;", "é", "\udcff", "'")) + text[at:]
            case 2:
                number = rng.choice(("262144", "'2'", ">4<", "'5'", "65536", "'4'", "'0'"))
                text = text.replace(
                    number, number[0] + rng.choice(NUMBERS) + number[-1] if not number.isdigit() else rng.choice(NUMBERS), 1
                )
            case 3:
                tag = rng.choice(("name", "uuid", "memory", "vcpu", "devices", "target", "size", "os", "metadata", "alias"))
                text = text.replace(f"<{tag}", f"<{rng.choice(('x', 'policy', tag * 2))}", 1)
            case 4:
                text = text.replace(
                    "unit='KiB'", f"unit={quoteattr(rng.choice(('', 'furlong', 'kib', 'b', 'bytes', 'EiB', 'G', 'KB')))}", 1
                )
            case _:
                text = text[:at]
        text = text or "<"
    return text


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_policy_that_cannot_be_read_excludes_its_vm(batch: int) -> None:
    half, understood = INPUTS // BATCHES // 2, 0
    for number in range(batch * half, (batch + 1) * half):
        given, name, text = policy(random.Random(number))
        definition = parse_definition(WHOLE.format(policy=given))
        domain = domain_of(definition, FACTS)
        assert domain.policy == definition.policy
        if definition.policy_error is None:
            # Written oddly, and yet what it says: "1e3" is a thousand, "0" the lowest priority.
            meant = getattr(definition.policy, name)
            assert (meant is None and text == "None") or float(text) == float(meant), (number, given, meant)
            understood += 1
        else:
            assert definition.policy.excluded and definition.policy == Policy(excluded=True), (number, given)
        assert msgspec.convert(msgspec.to_builtins(domain), Domain) == domain, (number, given)
    assert understood < half * 0.2, "the generator is too tame"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_what_is_no_definition_is_a_value_error(batch: int) -> None:
    half, read = INPUTS // BATCHES // 2, 0
    for number in range(batch * half, (batch + 1) * half):
        text = broken(random.Random(-number - 1))
        try:
            definition = parse_definition(text)
        except ValueError:
            continue
        domain_of(definition, FACTS)
        read += 1
    assert half * 0.05 < read < half * 0.95, "the generator is too tame or too wild"


def test_entities_do_not_grow() -> None:
    bomb = "<!DOCTYPE d [<!ENTITY a '" + "x" * 1000 + "'>"
    for n in range(8):
        bomb += f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 20}'>"
    with pytest.raises(ValueError, match="domain XML"):
        parse_definition(bomb + "]><domain><name>&i;</name></domain>")
