"""Places where a test may kill this process, to prove that a kill at any moment leaves every lever before or after a step, not between.

`hit(name)` does nothing unless TIDEGATE_FAILPOINT names it: "journal.intent.after" kills at the first hit, "journal.intent.after:3" at the
third. The kill is SIGKILL to ourselves: no handler, no flush, no lock released, exactly what the kernel's out-of-memory killer does.
Invariant: every name is listed in FAILPOINTS; a name that is not is a mistake of ours and raises at once where failpoints are armed.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "TIDEGATE_FAILPOINT"

FAILPOINTS: Final = {
    "journal.intent.before": "the step is decided, nothing is written",
    "journal.intent.after": "the intent is durable, nothing was submitted",
    "submit.before": "in the acting thread, right before the hypervisor is called",
    "submit.between": "between the parts of a lever that takes several calls",
    "submit.after": "the hypervisor has answered, the core has not heard",
    "shaper.between": "between two netlink requests of one change of shaping",
    "read_back.before": "right before what is in force is read",
    "read_back.after": "what is in force was read, the core has not heard",
    "journal.closed.before": "the outcome is known, not written",
    "journal.closed.after": "the outcome is written, not shipped",
    "journal.undo.before": "the undo is decided, not written",
    "journal.undo.after": "the undo is durable, not submitted",
    "journal.rotate.before": "the file is full",
    "journal.rotate.between": "the full file has become the older one, the new one is not there",
    "journal.rotate.after": "the new file holds what must not be forgotten",
}


def _armed(text: str) -> tuple[str, int]:
    name, _, count = text.partition(":")
    if not name:
        return "", 0
    if name not in FAILPOINTS or (count and not count.isdigit()) or count == "0":
        raise ValueError(f"{VARIABLE} = {text!r}: allowed NAME or NAME:COUNT with one of {', '.join(FAILPOINTS)}")
    return name, int(count or 1)


_name, _left = _armed(os.environ.get(VARIABLE, ""))


def hit(name: str) -> None:
    """Die here if this is the place that the environment names. A comparison of two strings otherwise."""
    global _left  # noqa: PLW0603  # counts down over the life of the process, which is what it ends
    if name != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
