"""What a migration over libvirt needs of texts and units: bandwidth, the memory's URI, job statistics, and the limits that travel. Pure.

The limits are one XML element in the domain's metadata, written by another host: parsing trusts nothing and raises ValueError only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit
from xml.etree import ElementTree  # the text comes from libvirtd, which has parsed and rewritten it: no DTD, no entities
from xml.sax.saxutils import quoteattr

from agent.ports import MigrationProgress
from shared.errors import Refusal
from shared.model import Allocation
from shared.refusal import RefusalCode
from shared.units import MIB, UNLIMITED

LIMITS_NAMESPACE: Final = "urn:tidegate:limits:1"
LIMITS_PREFIX: Final = "tidegate-limits"
_MOST_MIB_PER_S: Final = 8_796_093_022_207  # libvirt's QEMU_DOMAIN_MIG_BANDWIDTH_MAX: what its "unlimited" is


def mib_per_s(bits_per_s: int) -> int:
    """libvirt's unit. At least 1, because 0 would mean no limit: 4 Mbit/s become 8.4."""
    return _MOST_MIB_PER_S if bits_per_s == UNLIMITED else min(max(1, bits_per_s // (8 * MIB)), _MOST_MIB_PER_S)


def memory_uri(template: str, uri: str) -> str:
    """`tcp://{host}` for qemu+tls://h2.example/system → tcp://h2.example. Raises Refusal(NOT_CAPABLE) where the URI names no host."""
    if "{host}" not in template:
        return template
    host = urlsplit(uri).hostname
    if not host:
        raise Refusal(RefusalCode.NOT_CAPABLE, f"migration.migrate_uri {template!r} wants the destination's host, {uri!r} names none")
    return template.replace("{host}", f"[{host}]" if ":" in host else host)


def progress_of(stats: Mapping[str, Any]) -> MigrationProgress:
    """What libvirt's job statistics say; pages are counted in the guest's page size, ours are of 4 KiB."""
    dirty, page = stats.get("memory_dirty_rate"), stats.get("memory_page_size") or 4096
    speed = stats.get("memory_bps")
    return MigrationProgress(
        elapsed_ms=int(stats.get("time_elapsed", 0)),
        memory_remaining_bytes=stats.get("memory_remaining"),
        memory_processed_bytes=stats.get("memory_processed"),
        memory_bits_per_s=None if not speed else speed * 8,
        dirty_pages_per_s=None if dirty is None else dirty * page // 4096,
        iteration=stats.get("memory_iteration"),
        downtime_ms=stats.get("downtime"),
    )


def limits_text(limits: Allocation, host_id: str, at_ns: int) -> str:
    """The element that travels; a limit that is not known is left out."""
    known = {name: value for name in Allocation.__struct_fields__ if (value := getattr(limits, name)) is not None}
    attributes = {"from": host_id, "at_ns": at_ns, **known}
    return "<limits " + " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items()) + "/>"


def parse_limits(text: str) -> tuple[str, Allocation]:
    """(host that wrote it, limits). Raises ValueError naming what is wrong; fields of a newer version are passed over."""
    try:
        attributes = ElementTree.fromstring(text).attrib
    except ElementTree.ParseError as error:
        raise ValueError(f"limits: {error}") from error
    found: dict[str, int] = {}
    for name in Allocation.__struct_fields__:
        if (given := attributes.get(name)) is None:
            continue
        # 2^53 has 16 digits; int() would take minutes for a number of a million.
        if len(given) > 17 or not given.removeprefix("-").isdecimal() or not given.isascii():
            raise ValueError(f"limits: {name} = {given[:40]!r}: not a number that a limit can have")
        value = int(given)
        if not UNLIMITED <= value <= 2**53:
            raise ValueError(f"limits: {name} = {value}: allowed {UNLIMITED} to 2^53")
        found[name] = value
    return attributes.get("from", ""), Allocation(**found)
