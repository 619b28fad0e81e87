"""What goes to the coordinator, numbered: sample blocks and outcomes in one sequence. Pure.

Invariant: the sequence never repeats or skips within this agent's life, and continues behind the highest spooled one after a restart;
it runs on across boots, so a frame of an older boot always has a smaller number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.events import SpoolFrame
from shared.frame import MAX_BODY_BYTES, encode_block
from shared.messages import Outcomes, Samples
from shared.model import VM_COLUMNS, HostSample
from shared.plan import Outcome

# samples x VMs in one block: all columns present must fit a frame, with a tenth left for names and host columns.
MAX_BLOCK_CELLS: Final = MAX_BODY_BYTES * 9 // 10 // (len(VM_COLUMNS) * 8 + 1)
# The block's list of VMs; a host has fewer (shared.messages.Inventory), but they may come and go within one block.
MAX_BLOCK_VMS: Final = 4096
# An outcome is at most about 3 kB (detail 1024 characters, two steps' labels).
MAX_OUTCOMES_PER_FRAME: Final = 512


class Shipper:
    """Collects samples into blocks and outcomes into batches."""

    def __init__(self, boot_id: str, next_sequence: int, frame_samples: int) -> None:
        self.boot_id = boot_id
        self.next_sequence = next_sequence
        self._frame_samples = frame_samples
        self._samples: list[HostSample] = []
        self._vm_ids: set[str] = set()
        self._outcomes: list[Outcome] = []

    def sample(self, sample: HostSample) -> list[SpoolFrame]:
        """Collect one sample; the frames that are full now."""
        frames = []
        vm_ids = self._vm_ids | sample.vms.keys()
        cells = (len(self._samples) + 1) * len(vm_ids)
        if self._samples and (cells > MAX_BLOCK_CELLS or len(vm_ids) > MAX_BLOCK_VMS):
            frames.append(self._block())
            vm_ids = set(sample.vms)
        self._samples.append(sample)
        self._vm_ids = vm_ids
        if len(self._samples) >= self._frame_samples:
            frames.append(self._block())
        return frames

    def outcome(self, outcome: Outcome) -> None:
        """Collect one outcome."""
        self._outcomes.append(outcome)

    def outcomes(self) -> list[SpoolFrame]:
        """Everything collected, as frames."""
        frames = []
        for start in range(0, len(self._outcomes), MAX_OUTCOMES_PER_FRAME):
            batch = tuple(self._outcomes[start : start + MAX_OUTCOMES_PER_FRAME])
            sequence = self._number()
            frames.append(SpoolFrame(sequence=sequence, message=Outcomes(boot_id=self.boot_id, sequence=sequence, outcomes=batch)))
        self._outcomes.clear()
        return frames

    def flush(self) -> list[SpoolFrame]:
        """The unfinished block and the outcomes, as frames; for a clean stop."""
        return ([self._block()] if self._samples else []) + self.outcomes()

    @property
    def outcomes_full(self) -> bool:
        """Enough outcomes for a whole frame wait."""
        return len(self._outcomes) >= MAX_OUTCOMES_PER_FRAME

    @property
    def outcomes_waiting(self) -> Sequence[Outcome]:
        """Outcomes not yet in a frame."""
        return self._outcomes

    def _block(self) -> SpoolFrame:
        block = encode_block(self._samples)
        self._samples, self._vm_ids = [], set()
        sequence = self._number()
        return SpoolFrame(sequence=sequence, message=Samples(boot_id=self.boot_id, sequence=sequence, block=block))

    def _number(self) -> int:
        sequence = self.next_sequence
        self.next_sequence += 1
        return sequence
