"""What a changed configuration may change while the agent runs, and what waits for a restart. Pure.

Invariant: the configuration in use stays whole and valid: what cannot change live keeps its old value until the process starts anew.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shared.config import AgentConfig

# Read where they are used, or handed on when they change; everything else is built in at start (connections, folders, descriptors).
LIVE: Final = frozenset(
    {
        "log_level",
        "sample_period_s",
        "pause_file",
        "exporter_address",
        "exporter_socket",
        "exporter_vm_series",
        "guard",
        "reactive",
        "migration",
    }
)
LIVE_SAMPLING: Final = frozenset({"subsample_s", "starved_permille"})


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration to go on with, and which settings (dotted) changed now or only after a restart."""

    config: AgentConfig
    changed: tuple[str, ...]
    waiting: tuple[str, ...]


def reload(old: AgentConfig, new: AgentConfig) -> Reload:
    """Take over from `new` what can change live."""
    changed: list[str] = []
    waiting: list[str] = []
    for key in _differences(old, new):
        section, _, name = key.partition(".")
        live = section in LIVE or (section == "sampling" and name in LIVE_SAMPLING)
        (changed if live else waiting).append(key)
    sampling = msgspec.structs.replace(old.sampling, **{name: getattr(new.sampling, name) for name in LIVE_SAMPLING})
    config = msgspec.structs.replace(old, **{name: getattr(new, name) for name in LIVE}, sampling=sampling)
    return Reload(config=config, changed=tuple(changed), waiting=tuple(waiting))


def _differences(old: Any, new: Any, above: str = "") -> list[str]:
    found: list[str] = []
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct):
            found += _differences(before, after, f"{above}{name}.")
        else:
            found.append(f"{above}{name}")
    return found
