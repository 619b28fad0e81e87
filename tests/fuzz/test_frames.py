"""One invariant for all bytes of a peer: decoded, or PeerError; and what we encode comes back as it was."""

from __future__ import annotations

import zlib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.events import Close, Connected, Received, Reply
from coordinator.gateway.sessions import GatewayCore, GatewaySettings
from shared.errors import PeerError
from shared.frame import HEADER, MAGIC, VERSION, decode_agent, decode_block, decode_coordinator, encode, encode_block
from shared.messages import AgentMessage, CoordinatorMessage, Samples
from shared.model import VM_COLUMNS, HostSample, VmSample

known = st.integers(-(2**63) + 1, 2**63 - 1)
readings = st.none() | known
vm_ids = st.text("abcdef0123456789-", min_size=1, max_size=36).map(lambda text: "v" + text)
vm_samples = st.fixed_dictionaries({}, optional=dict.fromkeys(VM_COLUMNS, readings)).map(lambda fields: VmSample(**fields))
stamps = st.integers(0, 2**63 - 1)
host_samples = st.builds(
    HostSample,
    wall_ns=stamps,
    monotonic_ns=stamps,
    period_ns=stamps,
    cpu_used_millicores=readings,
    memory_available_bytes=readings,
    psi_cpu_some_permille=readings,
    psi_memory_some_permille=readings,
    vms=st.dictionaries(vm_ids, vm_samples, max_size=4),
)
blocks = st.lists(host_samples, min_size=1, max_size=4).map(encode_block)
frames = st.builds(Samples, boot_id=st.just("b1"), sequence=st.integers(0, 2**53), block=blocks).map(encode)
nested = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
tags = st.sampled_from(("hello", "inventory", "samples", "outcomes", "status", "welcome", "ack", "plan", "mode", "goodbye", "x"))


def framed(body: bytes) -> bytes:
    return HEADER.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body


def decode_or_refuse(frame: bytes) -> None:
    for decode in (decode_agent, decode_coordinator):
        try:
            message = decode(frame)
        except PeerError:
            continue
        assert isinstance(message, AgentMessage if decode is decode_agent else CoordinatorMessage)
        if isinstance(message, Samples):
            block_or_refuse(message.block)


def block_or_refuse(block: bytes) -> None:
    try:
        samples = decode_block(block)
    except PeerError:
        return
    assert all(isinstance(sample, HostSample) for sample in samples)


@given(st.lists(host_samples, min_size=1, max_size=4))
def test_samples_come_back_as_they_were(samples: list[HostSample]) -> None:
    assert decode_block(encode_block(samples)) == tuple(samples)


@given(st.binary(max_size=300))
def test_garbage(garbage: bytes) -> None:
    decode_or_refuse(garbage)
    decode_or_refuse(framed(garbage))
    block_or_refuse(garbage)


@given(nested, tags)
def test_well_formed_msgpack_of_any_shape(value: object, tag: str) -> None:
    decode_or_refuse(framed(msgspec.msgpack.encode(value)))
    decode_or_refuse(framed(msgspec.msgpack.encode({"type": tag, "boot_id": "b1", "sequence": value, "block": value, "plan": value})))
    columns = {"cpu_used_millicores": value}
    block_or_refuse(msgspec.msgpack.encode({"n": 1, "vm_ids": ["v"], "host": {"wall_ns": value}, "present": b"1", "columns": columns}))


@given(frames, st.data())
def test_truncations_never_decode(frame: bytes, data: st.DataObject) -> None:
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    try:
        decode_agent(cut)
    except PeerError:
        return
    raise AssertionError("a truncated frame was decoded")


@given(frames, st.data())
def test_bit_flips_never_decode(frame: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    flipped = bytearray(frame)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        decode_agent(bytes(flipped))
    except PeerError:
        return
    raise AssertionError("CRC-32 finds every single flipped bit")


@given(blocks, st.data())
def test_blocks_flipped_behind_a_right_checksum(block: bytes, data: st.DataObject) -> None:
    flipped = bytearray(block)
    for bit in data.draw(st.lists(st.integers(0, len(block) * 8 - 1), min_size=1, max_size=8)):
        flipped[bit // 8] ^= 1 << bit % 8
    block_or_refuse(bytes(flipped))


@given(st.lists(st.binary(max_size=60) | frames | tags.map(lambda tag: framed(msgspec.msgpack.encode({"type": tag}))), max_size=6))
def test_the_gateway_answers_any_peer_with_goodbye_and_touches_nobody_else(received: list[bytes]) -> None:
    core = GatewayCore(GatewaySettings(epoch=1))
    core.handle(Connected(1, "h1"), 0)
    core.handle(Connected(2, "h2"), 0)
    for frame in received:
        for instruction in core.handle(Received(1, frame), 0):
            assert isinstance(instruction, Reply | Close)
            assert instruction.conn_id == 1
