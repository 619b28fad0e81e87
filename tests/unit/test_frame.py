"""The frame codec: what it refuses and how it says so; the block's shapes; frames of version 1 as bytes that must still read."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from shared.errors import PeerError
from shared.frame import (
    HEADER,
    HOST_COLUMNS,
    MAGIC,
    MAX_BODY_BYTES,
    MAX_CELLS,
    VERSION,
    decode_agent,
    decode_block,
    decode_coordinator,
    encode,
    encode_block,
)
from shared.messages import Ack, Inventory, Samples, Status, Welcome
from shared.model import VM_COLUMNS, HostSample, Mode, Policy, VmSample

SAMPLE = HostSample(
    wall_ns=1_700_000_000_000_000_000,
    monotonic_ns=5,
    period_ns=5_000_000_000,
    cpu_used_millicores=800,
    vms={"vm1": VmSample(cpu_used_millicores=700, cpu_quota_millicores=-1, memory_used_bytes=2**40), "vm2": VmSample()},
)

# Made by version 1 of this codec; a change that cannot read them any more breaks every agent in the field.
OLD_ACK = bytes.fromhex("5447460100000021ad3e5bc483a474797065a361636ba7626f6f745f6964a26231a873657175656e6365cd0100")


def frame(body: bytes, magic: bytes = MAGIC, version: int = VERSION, length: int | None = None, crc: int | None = None) -> bytes:
    head = HEADER.pack(magic, version, len(body) if length is None else length, zlib.crc32(body) if crc is None else crc)
    return head + body


def test_frames_of_version_1_still_read() -> None:
    assert decode_coordinator(OLD_ACK) == Ack(boot_id="b1", sequence=256)
    assert encode(Ack(boot_id="b1", sequence=256)) == OLD_ACK


BODY = msgspec.msgpack.encode(Ack(boot_id="b1", sequence=1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "frame of 0 bytes is shorter than its header"),
        (OLD_ACK[:11], "frame of 11 bytes is shorter"),
        (frame(BODY, magic=b"GET"), "frame starts with b'GET'"),
        (frame(BODY, version=0), "frame version 0: this side speaks version 1"),
        (frame(BODY, version=2), "frame version 2: this side speaks version 1"),
        (frame(BODY, length=MAX_BODY_BYTES + 1), f"at most {MAX_BODY_BYTES}"),
        (frame(BODY, length=len(BODY) + 1), "announces .* bytes and carries"),
        (frame(BODY) + b"x", "announces .* bytes and carries"),
        (frame(BODY, crc=0), "checksum"),
        (frame(b""), "frame body"),
        (frame(b"\xc1"), "frame body"),
        (frame(b"\x91" * 100_000), "frame body"),
        (frame(b"\x81\xa4type\xa1\xee"), "frame body"),
        (frame(msgspec.msgpack.encode({"type": "unheard-of"})), "frame body"),
        (frame(msgspec.msgpack.encode({"type": "ack", "boot_id": "b1", "sequence": -1})), "frame body"),
        (frame(msgspec.msgpack.encode({"type": "ack", "boot_id": "b 1", "sequence": 1})), "frame body"),
        (frame(msgspec.msgpack.encode({"type": "goodbye", "reason": "x", "retry_after_s": float("nan")})), "frame body"),
        (frame(msgspec.msgpack.encode({"type": "goodbye", "reason": "x", "retry_after_s": float("inf")})), "frame body"),
    ],
)
def test_each_fault_is_named(bad: bytes, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        decode_coordinator(bad)


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    body = msgspec.msgpack.encode({"type": "ack", "boot_id": "b1", "sequence": 1, "new_in_2030": [1, 2]})
    assert decode_coordinator(frame(body)) == Ack(boot_id="b1", sequence=1)


def test_a_policy_is_additive_both_ways() -> None:
    domain = {"vm_id": "v1", "name": "web", "vcpus_max": 1, "memory_max_bytes": 1}
    for policy, known in (
        ({"client": "acme"}, Policy(client="acme")),  # of a peer that knows no applications yet
        ({"client": "acme", "application": "shop", "new_in_2030": 1}, Policy(client="acme", application="shop")),
    ):
        body = msgspec.msgpack.encode({"type": "inventory", "domains": [{**domain, "policy": policy}]})
        message = decode_agent(frame(body))
        assert isinstance(message, Inventory)
        assert message.domains[0].policy == known


def test_each_direction_has_its_own_messages() -> None:
    with pytest.raises(PeerError, match="frame body"):
        decode_agent(encode(Welcome(epoch=1, wall_ns=0, acked=-1)))
    with pytest.raises(PeerError, match="frame body"):
        decode_coordinator(encode(Status(wall_ns=0, mode=Mode.OFF, mode_pinned=False)))


def test_our_own_message_that_is_too_large_is_our_bug() -> None:
    with pytest.raises(ValueError, match=f"exceeds {MAX_BODY_BYTES}"):
        encode(Samples(boot_id="b1", sequence=0, block=bytes(MAX_BODY_BYTES)))


def test_a_block_keeps_none_and_unlimited_and_absent_vms_apart() -> None:
    later = HostSample(wall_ns=2, monotonic_ns=2, period_ns=1, vms={"vm3": VmSample(net_rx_bits_per_s=0)})
    assert decode_block(encode_block([SAMPLE, later])) == (SAMPLE, later)


def test_a_host_without_vms_has_a_block_too() -> None:
    empty = HostSample(wall_ns=1, monotonic_ns=1, period_ns=1)
    assert decode_block(encode_block([empty])) == (empty,)


def parsed_block() -> dict[str, object]:
    block: dict[str, object] = msgspec.msgpack.decode(encode_block([SAMPLE]))
    return block


def test_a_column_unknown_throughout_travels_not_at_all() -> None:
    assert set(parsed_block()["columns"]) == {"cpu_used_millicores", "cpu_quota_millicores", "memory_used_bytes"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "sample block"),
        ({"n": 10_001}, "sample block"),
        ({"n": 3}, "presence map of 2 bytes for 6 cells"),
        ({"n": 9_999, "vm_ids": [f"vm{i}" for i in range(100)]}, f"at most {MAX_CELLS}"),
        ({"vm_ids": ["vm1"]}, "presence map of 2 bytes for 1 cells"),
        ({"vm_ids": ["vm1", "../etc"]}, "sample block"),
        ({"present": b"\1"}, "presence map"),
        ({"columns": {"cpu_used_millicores": bytes(8)}}, "cpu_used_millicores"),
        ({"columns": {"cpu_used_millicores": bytes(17)}}, "cpu_used_millicores"),
        ({"columns": {"cpu_used_millicores": [1, 2]}}, "sample block"),
        ({"host": {}}, "wall_ns missing or negative"),
        ({"host": dict.fromkeys(HOST_COLUMNS, b"\xff" * 8)}, "wall_ns missing or negative"),
    ],
)
def test_blocks_whose_shapes_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(PeerError, match=message):
        decode_block(msgspec.msgpack.encode({**parsed_block(), **change}))


def test_a_block_whose_text_is_not_unicode() -> None:
    """msgspec raises UnicodeDecodeError, no DecodeError, for these; it must not get past the codec."""
    with pytest.raises(PeerError, match="sample block"):
        decode_block(b"\x81\xa1\xee\x01")


def test_unknown_columns_of_a_newer_peer_are_ignored() -> None:
    block = parsed_block()
    block["columns"]["gpu_permille"] = bytes(16)  # type: ignore[index]
    assert decode_block(msgspec.msgpack.encode(block)) == (SAMPLE,)


def test_our_own_block_that_is_too_large_is_our_bug() -> None:
    with pytest.raises(ValueError, match="allowed 1 sample"):
        encode_block([])
    wide = HostSample(wall_ns=1, monotonic_ns=1, period_ns=1, vms={f"vm{i}": VmSample() for i in range(1000)})
    with pytest.raises(ValueError, match=f"66 samples x 1000 VMs: allowed 1 sample to {MAX_CELLS} cells"):
        encode_block([wide] * 66)


def test_columns_are_append_only() -> None:
    """The order is the wire's; a new field goes to the end."""
    assert VM_COLUMNS[:4] == ("cpu_used_millicores", "cpu_throttled_permille", "cpu_ready_permille", "psi_cpu_some_permille")
    assert VM_COLUMNS[26] == "cpu_used_peak_millicores"
    assert len(VM_COLUMNS) >= 27
