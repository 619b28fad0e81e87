"""Bandwidth, URIs, job statistics and travelling limits as libvirt wants and shows them; another host's element may say anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.migration_texts import limits_text, memory_uri, mib_per_s, parse_limits, progress_of
from agent.ports import MigrationProgress
from shared.errors import Refusal
from shared.model import Allocation
from shared.refusal import RefusalCode
from shared.units import MBIT, UNLIMITED

FIELDS = Allocation.__struct_fields__


@pytest.mark.parametrize(
    ("bits_per_s", "mib"), [(1, 1), (MBIT, 1), (9 * MBIT, 1), (17 * MBIT, 2), (8_000 * MBIT, 953), (UNLIMITED, 8_796_093_022_207)]
)
def test_bandwidth_is_never_0_which_would_be_no_limit(bits_per_s: int, mib: int) -> None:
    assert mib_per_s(bits_per_s) == mib


@pytest.mark.parametrize(
    ("template", "uri", "wanted"),
    [
        ("tcp://{host}", "qemu+tls://h2.example:16514/system", "tcp://h2.example"),
        ("tcp://{host}:49200", "qemu+tcp://10.98.0.2/system", "tcp://10.98.0.2:49200"),
        ("tcp://{host}", "qemu+ssh://root@[fd00::2]/system", "tcp://[fd00::2]"),
        ("tcp://storage-net", "qemu:///system", "tcp://storage-net"),
    ],
)
def test_memory_goes_where_the_template_says(template: str, uri: str, wanted: str) -> None:
    assert memory_uri(template, uri) == wanted


def test_a_template_without_a_host_to_put_in_is_refused() -> None:
    with pytest.raises(Refusal, match="names none") as refused:
        memory_uri("tcp://{host}", "qemu:///system?socket=/run/other")
    assert refused.value.code is RefusalCode.NOT_CAPABLE


def test_progress_in_our_units() -> None:
    stats = {
        "time_elapsed": 2000,
        "memory_remaining": 5,
        "memory_processed": 7,
        "memory_bps": 100,
        "memory_dirty_rate": 3,
        "memory_page_size": 16384,
        "memory_iteration": 2,
        "downtime": 33,
        "type": 2,
    }
    assert progress_of(stats) == MigrationProgress(
        elapsed_ms=2000,
        memory_remaining_bytes=5,
        memory_processed_bytes=7,
        memory_bits_per_s=800,
        dirty_pages_per_s=12,
        iteration=2,
        downtime_ms=33,
    )
    assert progress_of({"type": 2}) == MigrationProgress()


@given(st.builds(Allocation, **{name: st.none() | st.integers(-1, 2**53) for name in FIELDS}), st.text("<>&'\"abc-", max_size=20))
def test_limits_survive_the_way(limits: Allocation, host: str) -> None:
    assert parse_limits(limits_text(limits, host, 1_800_000_000)) == (host, limits)


def test_what_a_newer_version_says_besides_is_passed_over() -> None:
    assert parse_limits('<limits from="h9" vcpus="2" gpu="1"><more/></limits>') == ("h9", Allocation(vcpus=2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<limits",
        '<limits vcpus="two"/>',
        '<limits vcpus="-2"/>',
        '<limits vcpus="9007199254740993"/>',
        '<limits vcpus="٣"/>',
        '<limits vcpus="1.5"/>',
        '<limits vcpus=""/>',
        '<limits vcpus="--1"/>',
        f'<limits vcpus="{"9" * 1_000_000}"/>',
    ],
)
def test_what_cannot_be_a_limit_is_an_error_that_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="limits"):
        parse_limits(text)


@given(st.dictionaries(st.sampled_from(FIELDS), st.text(max_size=30)))
def test_a_hostile_element_gives_limits_or_an_error(fields: dict[str, str]) -> None:
    from xml.sax.saxutils import quoteattr  # noqa: PLC0415

    text = "<limits " + " ".join(f"{name}={quoteattr(value)}" for name, value in fields.items()) + "/>"
    try:
        _, limits = parse_limits(text)
    except ValueError as error:
        assert "limits" in str(error)
    else:
        assert all(value is None or UNLIMITED <= value <= 2**53 for value in (getattr(limits, name) for name in FIELDS))
