"""Frames to the coordinator: one sequence, bounded blocks and batches."""

from __future__ import annotations

from agent.events import SpoolFrame
from agent.link.shipping import MAX_BLOCK_CELLS, MAX_OUTCOMES_PER_FRAME, Shipper
from shared.frame import MAX_BODY_BYTES, decode_block, encode
from shared.messages import Outcomes, Samples
from shared.model import VM_COLUMNS, HostSample, VmSample
from shared.plan import Outcome, OutcomeState, Step, StepKind

FULL = VmSample(**dict.fromkeys(VM_COLUMNS, 1))


def sample(number: int, vms: range) -> HostSample:
    return HostSample(wall_ns=number, monotonic_ns=number, period_ns=5, vms={f"vm-{n:036d}": FULL for n in vms})


def blocks(frames: list[SpoolFrame]) -> list[int]:
    sizes = []
    for frame in frames:
        assert isinstance(frame.message, Samples) and frame.message.sequence == frame.sequence
        assert len(encode(frame.message)) < MAX_BODY_BYTES
        sizes.append(len(decode_block(frame.message.block)))
    return sizes


def test_a_block_is_cut_before_it_outgrows_a_frame() -> None:
    shipper = Shipper("boot", 0, 60)
    wide = 4096
    frames = [frame for n in range(9) for frame in shipper.sample(sample(n, range(wide)))]
    most = MAX_BLOCK_CELLS // wide
    assert 1 < most < 9, "else nothing is cut"
    # a full block goes out with the sample that would not fit any more, so the last one stays until it is flushed
    assert blocks(frames) == [most] * (8 // most)
    assert blocks(shipper.flush()) == [9 - most * (8 // most)]


def test_vms_that_come_and_go_widen_a_block() -> None:
    shipper = Shipper("boot", 0, 60)
    frames = [frame for n in range(6) for frame in shipper.sample(sample(n, range(n * 1500, n * 1500 + 1500)))]
    frames += shipper.flush()
    assert blocks(frames) == [2, 2, 2]  # a third sample would make it 4500 VMs
    assert [frame.sequence for frame in frames] == [0, 1, 2]


def test_outcomes_go_in_bounded_batches() -> None:
    shipper = Shipper("boot", 7, 3)
    step = Step(id="s", vm_id="v", kind=StepKind.MEMORY, value=1, deadline_ns=1)
    for n in range(MAX_OUTCOMES_PER_FRAME + 1):
        assert shipper.outcomes_full == (n >= MAX_OUTCOMES_PER_FRAME)
        shipper.outcome(Outcome(step=step, state=OutcomeState.FAILED, detail="x" * 1024))
    frames = shipper.outcomes()
    assert [frame.sequence for frame in frames] == [7, 8] and shipper.outcomes() == []
    assert all(isinstance(frame.message, Outcomes) and len(encode(frame.message)) < MAX_BODY_BYTES for frame in frames)
