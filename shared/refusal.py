"""Refusal codes: the one stable vocabulary for "no" in the agent, API, logs, metrics and docs.

A code, once released, keeps its name and meaning. docs/refusals.md lists each one; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum


class RefusalCode(StrEnum):
    """Why a step, plan or request was not carried out."""

    MODE_FORBIDS = "mode_forbids"
    PLAN_STALE = "plan_stale"
    EPOCH_OLD = "epoch_old"
    SEQUENCE_OLD = "sequence_old"
    STEP_EXPIRED = "step_expired"
    STEP_DUPLICATE = "step_duplicate"
    WRONG_HOST = "wrong_host"
    UNKNOWN_VM = "unknown_vm"
    VM_NOT_RUNNING = "vm_not_running"
    VM_EXCLUDED = "vm_excluded"
    NOT_CAPABLE = "not_capable"
    BELOW_FLOOR = "below_floor"
    ABOVE_CEILING = "above_ceiling"
    ABOVE_DOMAIN_MAXIMUM = "above_domain_maximum"
    STEP_TOO_LARGE = "step_too_large"
    RATE_LIMITED = "rate_limited"
    COOLDOWN = "cooldown"
    HOST_COMMIT_LIMIT = "host_commit_limit"
    PRESSURE_VETO = "pressure_veto"
    READING_STALE = "reading_stale"
    BELOW_WORKING_SET = "below_working_set"
    VM_BUSY = "vm_busy"
    BACKING_OFF = "backing_off"
    FOREIGN_SHAPING = "foreign_shaping"
    NOTHING_TO_DO = "nothing_to_do"
    PRECONDITION_CHANGED = "precondition_changed"
    HOST_CAPACITY = "host_capacity"
    HOST_UNKNOWN_STATE = "host_unknown_state"
    INVALID_VALUE = "invalid_value"
    UNAUTHORIZED = "unauthorized"
    LOCALLY_PINNED = "locally_pinned"
    NO_BENEFICIAL_MOVE = "no_beneficial_move"
    ADVICE_ONLY = "advice_only"
    QUARANTINED = "quarantined"
    PAUSED = "paused"
    FLAP_BUDGET = "flap_budget"
    RATE_OF_CHANGE = "rate_of_change"
    BLAST_RADIUS = "blast_radius"
    CIRCUIT_OPEN = "circuit_open"
    GROWTH_BUDGET = "growth_budget"
    AFTER_OOM = "after_oom"
    YIELDED = "yielded"
    FOREIGN_LIMIT = "foreign_limit"
    TARGET_UNKNOWN = "target_unknown"
    MIGRATION_BUSY = "migration_busy"
    NOT_CONVERGING = "not_converging"
    NOTHING_TO_UNDO = "nothing_to_undo"
    EMPTY_FLEET = "empty_fleet"
    NO_TARGET = "no_target"
    CONTRADICTORY_RULES = "contradictory_rules"
    SOLVER_LOST = "solver_lost"
    PLAN_REFUSED = "plan_refused"
    STORE_UNAVAILABLE = "store_unavailable"
    FORBIDDEN = "forbidden"
    KEY_REUSED = "key_reused"
    KEY_IN_USE = "key_in_use"
    ALREADY_EXISTS = "already_exists"
    IN_USE = "in_use"
    VERSION_REQUIRED = "version_required"
    VERSION_CHANGED = "version_changed"


DESCRIPTIONS: dict[RefusalCode, str] = {
    RefusalCode.MODE_FORBIDS: "the host's control mode does not allow this step",
    RefusalCode.PLAN_STALE: "the plan's deadline has passed",
    RefusalCode.EPOCH_OLD: "the plan comes from an earlier coordinator epoch",
    RefusalCode.SEQUENCE_OLD: "a newer plan for this host was already accepted",
    RefusalCode.STEP_EXPIRED: "the step's own deadline has passed",
    RefusalCode.STEP_DUPLICATE: "a step with this id was already accepted",
    RefusalCode.WRONG_HOST: "the plan names another host",
    RefusalCode.UNKNOWN_VM: "no such VM on this host or in this fleet",
    RefusalCode.VM_NOT_RUNNING: "the VM is not running",
    RefusalCode.VM_EXCLUDED: "policy opts this VM out",
    RefusalCode.NOT_CAPABLE: "the domain cannot do this; the reason is in its capabilities",
    RefusalCode.BELOW_FLOOR: "the value is below the floor of the VM's policy",
    RefusalCode.ABOVE_CEILING: "the value is above the ceiling of the VM's policy",
    RefusalCode.ABOVE_DOMAIN_MAXIMUM: "the value is above what the domain was defined with",
    RefusalCode.STEP_TOO_LARGE: "the change exceeds the largest step allowed at once",
    RefusalCode.RATE_LIMITED: "too many changes in the last minute (VM or host)",
    RefusalCode.COOLDOWN: "the VM was changed too recently for this direction",
    RefusalCode.HOST_COMMIT_LIMIT: "the host's commit limit has no room for this growth",
    RefusalCode.PRESSURE_VETO: "the VM is under pressure: no shrink",
    RefusalCode.READING_STALE: "no fresh reading: no shrink",
    RefusalCode.BELOW_WORKING_SET: "the value is below the measured working set",
    RefusalCode.VM_BUSY: "another step for this VM and resource is in flight",
    RefusalCode.BACKING_OFF: "earlier steps for this VM failed; waiting before the next try",
    RefusalCode.FOREIGN_SHAPING: "somebody else shapes this interface (libvirt <bandwidth> or a foreign qdisc)",
    RefusalCode.NOTHING_TO_DO: "the value is already in force",
    RefusalCode.PRECONDITION_CHANGED: "the host shows another value than the plan was made for",
    RefusalCode.HOST_CAPACITY: "the host has no capacity left for this",
    RefusalCode.HOST_UNKNOWN_STATE: "the host is silent or unknown and counts as full",
    RefusalCode.INVALID_VALUE: "the value is not allowed; the detail names field, value and range",
    RefusalCode.UNAUTHORIZED: "the caller has no valid token",
    RefusalCode.LOCALLY_PINNED: "the host's owner pinned the mode on the host; the API cannot change it",
    RefusalCode.NO_BENEFICIAL_MOVE: "no placement beats the present one by more than its moves cost",
    RefusalCode.ADVICE_ONLY: "moves are advice: placement.execute is not set to execute; nothing was migrated",
    RefusalCode.QUARANTINED: "the VM's monitor did not answer in time; it is left alone for a while",
    RefusalCode.PAUSED: "the host is paused: nothing is changed until it is resumed",
    RefusalCode.FLAP_BUDGET: "the VM turned from growing to shrinking too often of late: no further shrink for a while",
    RefusalCode.RATE_OF_CHANGE: "the VM would lose too much within an hour",
    RefusalCode.BLAST_RADIUS: "too many VMs of this host are being cut within a short time",
    RefusalCode.CIRCUIT_OPEN: "too many steps failed on this host of late: no shrinks and no moves until it calms down",
    RefusalCode.GROWTH_BUDGET: "the VM has used up what the host grants it without a plan",
    RefusalCode.AFTER_OOM: "the guest killed processes for want of memory within the last day: no shrink",
    RefusalCode.YIELDED: "somebody else changed this VM: it is left to them for a while",
    RefusalCode.FOREIGN_LIMIT: "a limit that is not ours is on this resource",
    RefusalCode.TARGET_UNKNOWN: "the destination of the migration is not among those that this host's owner allows",
    RefusalCode.MIGRATION_BUSY: "as many migrations as this host allows are under way",
    RefusalCode.NOT_CONVERGING: "the migration made no progress and was given up; the VM stays where it was",
    RefusalCode.NOTHING_TO_UNDO: "no such step of ours to take back",
    RefusalCode.EMPTY_FLEET: "no host is heard, or none of them has a VM: there is nothing to place",
    RefusalCode.NO_TARGET: "every host is in maintenance, spare or silent: no VM can be placed anywhere",
    RefusalCode.CONTRADICTORY_RULES: "rules of the site cannot all be kept; the detail names them",
    RefusalCode.SOLVER_LOST: "the placement's solver died or gave no answer in time: everything stays where it is",
    RefusalCode.PLAN_REFUSED: "the independent checker found fault with the plan: everything stays where it is",
    RefusalCode.STORE_UNAVAILABLE: "the registry or a disk cannot take or give it now; it recovers by itself, try again",
    RefusalCode.FORBIDDEN: "the caller's role does not allow this",
    RefusalCode.KEY_REUSED: "this Idempotency-Key was used for another request within a day",
    RefusalCode.KEY_IN_USE: "the request with this Idempotency-Key is under way, or a restart cut it short",
    RefusalCode.ALREADY_EXISTS: "something of this id is registered already",
    RefusalCode.IN_USE: "others still name it; the detail lists them",
    RefusalCode.VERSION_REQUIRED: "a change needs If-Match with the version that it is meant for (If-None-Match: * to create)",
    RefusalCode.VERSION_CHANGED: "it was changed meanwhile: read it again, then decide",
}
