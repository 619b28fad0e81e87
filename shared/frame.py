"""Frame codec, sans-I/O: a fixed header, a CRC and a msgpack body; and the columnar sample block inside.

Header (12 bytes, big endian): magic "TGF", version u8, body length u32, CRC-32 of the body u32.
Sample block: msgpack map with per-sample host columns and per-VM int64 columns (little endian, row = sample, column = VM);
UNKNOWN_I64 stands for None. A column that is unknown throughout is left out.
Invariant: decode(encode(x)) == x, and any other bytes raise PeerError.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from shared.errors import PeerError
from shared.messages import AgentMessage, CoordinatorMessage
from shared.model import VM_COLUMNS, HostSample, Identifier, VmSample
from shared.units import UNKNOWN_I64

MAGIC: Final = b"TGF"
VERSION: Final = 1
HEADER: Final = struct.Struct(">3sBII")
MAX_BODY_BYTES: Final = 4 * 1024 * 1024  # 4096 VMs x 27 columns x 8 bytes x 4 samples fit; nothing honest is larger
MAX_CELLS: Final = 65_536  # samples x VMs in one block

_encode = msgspec.msgpack.Encoder().encode
_agent_decoder = msgspec.msgpack.Decoder(AgentMessage)
_coordinator_decoder = msgspec.msgpack.Decoder(CoordinatorMessage)

HOST_COLUMNS: Final = (
    "wall_ns",
    "monotonic_ns",
    "period_ns",
    "cpu_used_millicores",
    "memory_available_bytes",
    "psi_cpu_some_permille",
    "psi_memory_some_permille",
    "psi_io_some_permille",
    "cpu_steal_permille",
    "memory_overhead_bytes",
    "net_rx_bits_per_s",
    "net_tx_bits_per_s",
    "net_dropped_per_s",
)


# The cells of a VM that a sample does not hold.
_ABSENT: Final = (None,) * len(VM_COLUMNS)


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    n: Annotated[int, Meta(ge=1, le=10_000)]
    vm_ids: Annotated[tuple[Identifier, ...], Meta(max_length=4096)]
    host: dict[str, bytes]
    present: bytes  # n x n_vms bytes: 1 where the VM was seen in that sample
    columns: dict[str, bytes]


_block_decoder = msgspec.msgpack.Decoder(_Block)


def encode(message: AgentMessage | CoordinatorMessage) -> bytes:
    """One whole frame. Raises ValueError when our own message is too large (our bug, not the peer's)."""
    body = _encode(message)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"message of {len(body)} bytes exceeds {MAX_BODY_BYTES}")
    return HEADER.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body


def decode_agent(frame: bytes) -> AgentMessage:
    """A frame from an agent. Raises PeerError on anything that is not one."""
    message: AgentMessage = _decode(frame, _agent_decoder)
    return message


def decode_coordinator(frame: bytes) -> CoordinatorMessage:
    """A frame from the coordinator. Raises PeerError on anything that is not one."""
    message: CoordinatorMessage = _decode(frame, _coordinator_decoder)
    return message


_M = TypeVar("_M")


def _decode(frame: bytes, decoder: msgspec.msgpack.Decoder[_M]) -> _M:
    if len(frame) < HEADER.size:
        raise PeerError(f"frame of {len(frame)} bytes is shorter than its header ({HEADER.size})")
    magic, version, length, crc = HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise PeerError(f"frame starts with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise PeerError(f"frame version {version}: this side speaks version {VERSION}")
    if length > MAX_BODY_BYTES:
        raise PeerError(f"frame body of {length} bytes: at most {MAX_BODY_BYTES}")
    body = frame[HEADER.size :]
    if len(body) != length:
        raise PeerError(f"frame announces {length} bytes and carries {len(body)}")
    if zlib.crc32(body) != crc:
        raise PeerError("frame checksum does not match")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"frame body: {error}") from error


def encode_block(samples: Sequence[HostSample]) -> bytes:
    """Columnar block of consecutive samples of one host (1 to 10,000 samples; samples x VMs at most MAX_CELLS)."""
    vm_ids = tuple(sorted({vm_id for sample in samples for vm_id in sample.vms}))
    if not samples or len(samples) * len(vm_ids) > MAX_CELLS:
        raise ValueError(f"{len(samples)} samples x {len(vm_ids)} VMs: allowed 1 sample to {MAX_CELLS} cells")
    host = {name: _pack([getattr(s, name) for s in samples]) for name in HOST_COLUMNS}
    cells = [sample.vms.get(vm_id) for sample in samples for vm_id in vm_ids]
    rows = [_ABSENT if vm is None else msgspec.structs.astuple(vm) for vm in cells]
    # strict: without any VM there is no row, and no column either
    columns = {
        name: _pack(values)
        for name, values in zip(VM_COLUMNS, zip(*rows, strict=True), strict=bool(rows))
        if values.count(None) < len(values)
    }
    present = bytes([vm is not None for vm in cells])
    return _encode(_Block(n=len(samples), vm_ids=vm_ids, host=host, present=present, columns=columns))


def decode_block(block: bytes, admit: Callable[[dict[str, bytes], int], dict[str, bytes]] | None = None) -> tuple[HostSample, ...]:
    """The samples of a block. Unknown columns (a newer peer) are ignored; PeerError when shapes do not fit.

    `admit(columns, cells)`, where given, says what is taken of the packed columns, first of the host's and then of the VMs'.
    """
    try:
        parsed = _block_decoder.decode(block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"sample block: {error}") from error
    n, width = parsed.n, len(parsed.vm_ids)
    if n * width > MAX_CELLS:
        raise PeerError(f"sample block of {n} x {width} cells: at most {MAX_CELLS}")
    if len(parsed.present) != n * width:
        raise PeerError(f"sample block: presence map of {len(parsed.present)} bytes for {n * width} cells")
    of_host, of_vms = parsed.host, parsed.columns
    if admit is not None:
        of_host, of_vms = admit(of_host, n), admit(of_vms, n * width)
    host = {name: _unpack(of_host.get(name), n, name) for name in HOST_COLUMNS}
    known = [name for name in VM_COLUMNS if name in of_vms]
    columns = [_unpack(of_vms[name], n * width, name) for name in known]
    rows = list(zip(*columns, strict=True)) if known else [()] * (n * width)
    for name in ("wall_ns", "monotonic_ns", "period_ns"):
        if any(value is None or value < 0 for value in host[name]):
            raise PeerError(f"sample block: {name} missing or negative")
    samples = []
    for i in range(n):
        vms = {}
        for j, vm_id in enumerate(parsed.vm_ids):
            cell = i * width + j
            if parsed.present[cell]:
                vms[vm_id] = VmSample(**dict(zip(known, rows[cell], strict=True)))
        samples.append(HostSample(**{name: column[i] for name, column in host.items()}, vms=vms))  # type: ignore[arg-type]  # required columns were checked above
    return tuple(samples)


def _pack(values: Sequence[int | None]) -> bytes:
    packed = array("q", [UNKNOWN_I64 if value is None else value for value in values])
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(column: bytes | None, cells: int, name: str) -> Sequence[int | None]:
    if column is None:
        return (None,) * cells
    if len(column) != cells * 8:
        raise PeerError(f"sample block: column {name} has {len(column)} bytes for {cells} cells")
    unpacked: tuple[int, ...] = struct.unpack(f"<{cells}q", column)
    return [None if value == UNKNOWN_I64 else value for value in unpacked] if UNKNOWN_I64 in unpacked else unpacked
