"""A move of a migration plan, for tests that care about a few of its fields."""

from __future__ import annotations

from typing import Any

from coordinator.migration_plan import PlannedMove


def planned_move(vm_id: str, source: str, target: str, **more: Any) -> PlannedMove:
    """In the first stage, at once, with all the time in the world, twenty seconds long; `more` of its fields as told."""
    fields = {"client": "c", "racks": ("", ""), "stage": 0, "not_before_ns": 0, "latest_ns": 10**18, "seconds": 20.0}
    return PlannedMove(vm_id=vm_id, source=source, target=target, **(fields | more))
