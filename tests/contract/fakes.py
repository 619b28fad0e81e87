"""In-memory History and Registry: what the contract suites hold the real ones against, and what other tests run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from coordinator.demand.signals import SignalBlock
from coordinator.migration_plan import MigrationPlan
from coordinator.model import N_RESOURCES, SIGNALS, BucketBlock, ForecastBlock, HistoryBlock, Receipt
from coordinator.store.history import STORED_LEVELS
from shared.model import Domain, HostCapacity, Mode, Policy
from shared.plan import Outcome, OutcomeState, Plan
from shared.units import BUCKET_S


class MemoryHistory:
    """History port over a dict of rows."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], np.ndarray] = {}  # float32[3, r]: mean, peak, censored
        self._signals: dict[tuple[str, int], np.ndarray] = {}  # float32[signal]
        self._forecasts: dict[tuple[str, int], ForecastBlock] = {}

    def append_signals(self, block: SignalBlock) -> None:
        for vm_id, means in zip(block.vm_ids, block.means, strict=True):
            if not np.isnan(means).all():
                self._signals[vm_id, block.start_s] = means.astype(np.float32)

    def append_buckets(self, block: BucketBlock) -> None:
        if block.signals is not None:
            self.append_signals(SignalBlock(start_s=block.start_s, vm_ids=block.vm_ids, means=block.signals))
        for i, vm_id in enumerate(block.vm_ids):
            self._rows[vm_id, block.start_s] = np.stack([block.mean[i], block.peak[i], block.censored[i]]).astype(np.float32)

    def append_history(self, block: HistoryBlock) -> None:
        buckets = block.mean.shape[2]
        for i, vm_id in enumerate(block.vm_ids):
            for b in range(buckets):
                row = np.stack([block.mean[i, :, b], block.peak[i, :, b], block.censored[i, :, b]])
                start_s = block.end_s - (buckets - 1 - b) * BUCKET_S
                if not np.isnan(row[:2]).all():
                    self._rows[vm_id, start_s] = row
                if block.signals is not None:
                    self.append_signals(SignalBlock(start_s=start_s, vm_ids=(vm_id,), means=block.signals[i : i + 1, :, b]))

    def append_forecast(self, block: ForecastBlock) -> None:
        at = [block.levels.index(level) for level in STORED_LEVELS]
        for i, vm_id in enumerate(block.vm_ids):
            self._forecasts[vm_id, block.issued_s] = replace(
                block,
                vm_ids=(vm_id,),
                mean=block.mean[i : i + 1],
                stddev=block.stddev[i : i + 1],
                quantiles=block.quantiles[i : i + 1][..., at],
                peak_quantiles=block.peak_quantiles[i : i + 1][..., at],
                model=block.model[i : i + 1],
                reason=block.reason[i : i + 1],
                coverage=block.coverage[i : i + 1],
                levels=STORED_LEVELS,
            )

    def load(self, vm_ids: Sequence[str], end_s: int, buckets: int) -> HistoryBlock:
        arrays = np.full((3, len(vm_ids), N_RESOURCES, buckets), np.nan, np.float32)
        for i, vm_id in enumerate(vm_ids):
            for b in range(buckets):
                row = self._rows.get((vm_id, end_s - (buckets - 1 - b) * BUCKET_S))
                if row is not None:
                    arrays[:, i, :, b] = row
        capacity = np.full((len(vm_ids), N_RESOURCES), np.nan, np.float32)
        mean, peak, censored = arrays
        signals = self._told(vm_ids, end_s, buckets)
        return HistoryBlock(vm_ids=tuple(vm_ids), end_s=end_s, mean=mean, peak=peak, censored=censored, capacity=capacity, signals=signals)

    def _told(self, vm_ids: Sequence[str], end_s: int, buckets: int) -> np.ndarray | None:
        told = np.full((len(vm_ids), len(SIGNALS), buckets), np.nan, np.float32)
        for i, vm_id in enumerate(vm_ids):
            for b in range(buckets):
                told[i, :, b] = self._signals.get((vm_id, end_s - (buckets - 1 - b) * BUCKET_S), np.nan)
        return None if np.isnan(told).all() else told

    def newest_s(self) -> int | None:
        return max((start_s for _, start_s in self._rows), default=None)

    def forecasts(self, vm_id: str, since_s: int) -> list[ForecastBlock]:
        return [block for (name, at), block in sorted(self._forecasts.items(), key=lambda item: item[0]) if name == vm_id and at >= since_s]


class MemoryRegistry:
    """Registry port over dicts."""

    def __init__(self) -> None:
        self._epoch = 0
        self._hosts: dict[str, dict[str, object]] = {}
        self._domains: dict[str, tuple[str, Domain, int]] = {}
        self._acked: dict[tuple[str, str], int] = {}
        self._modes: dict[str, Mode] = {}
        self._pauses: set[str | None] = set()
        self._policies: dict[str, Policy] = {}
        self._plans: dict[tuple[str, int, int], Plan] = {}
        self._receipts: dict[str, Receipt] = {}
        self._outcomes: dict[tuple[str, str, OutcomeState], Outcome] = {}
        self._tokens: dict[str, str] = {}
        self._migrations: dict[str, MigrationPlan] = {}
        self._documents: dict[str, str] = {}

    def next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def save_host(self, host_id: str, boot_id: str, capacity: HostCapacity, seen_ns: int) -> None:
        self._hosts[host_id] = {"host_id": host_id, "boot_id": boot_id, "capacity": capacity, "seen_ns": seen_ns}

    def save_domains(self, host_id: str, domains: Sequence[Domain], seen_ns: int) -> None:
        named = {domain.vm_id for domain in domains}
        self._domains = {vm: row for vm, row in self._domains.items() if row[0] != host_id or vm in named}
        for domain in domains:
            known = self._domains.get(domain.vm_id)
            if known is None or known[2] <= seen_ns:
                self._domains[domain.vm_id] = (host_id, domain, seen_ns)

    def hosts(self) -> list[dict[str, object]]:
        return [self._hosts[host_id] for host_id in sorted(self._hosts)]

    def domains(self) -> dict[str, tuple[str, Domain]]:
        return {vm_id: row[:2] for vm_id, row in self._domains.items()}

    def save_acked(self, host_id: str, boot_id: str, sequence: int) -> None:
        self._acked[host_id, boot_id] = max(sequence, self.acked(host_id, boot_id))

    def acked(self, host_id: str, boot_id: str) -> int:
        return self._acked.get((host_id, boot_id), -1)

    def save_pause(self, host_id: str | None, paused: bool) -> None:
        (self._pauses.add if paused else self._pauses.discard)(host_id)

    def pauses(self) -> set[str | None]:
        return set(self._pauses)

    def save_mode(self, host_id: str, mode: Mode) -> None:
        self._modes[host_id] = mode

    def modes(self) -> dict[str, Mode]:
        return dict(self._modes)

    def save_policy(self, vm_id: str, policy: Policy) -> None:
        self._policies[vm_id] = policy

    def policies(self) -> dict[str, Policy]:
        return dict(self._policies)

    def save_plan(self, plan: Plan) -> None:
        self._plans[plan.host_id, plan.epoch, plan.sequence] = plan

    def plans(self, limit: int, host_id: str | None = None) -> list[Plan]:
        chosen = [plan for plan in self._plans.values() if host_id in (None, plan.host_id)]
        return sorted(chosen, key=lambda plan: (plan.epoch, plan.sequence), reverse=True)[:limit]

    def save_receipts(self, receipts: Sequence[Receipt]) -> None:
        self._receipts |= {receipt.id: receipt for receipt in receipts}

    def receipts(self, limit: int, vm_id: str | None = None) -> list[Receipt]:
        chosen = [receipt for receipt in self._receipts.values() if vm_id in (None, receipt.vm_id)]
        return sorted(chosen, key=lambda receipt: receipt.issued_s, reverse=True)[:limit]

    def save_outcomes(self, host_id: str, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._outcomes.setdefault((host_id, outcome.step.id, outcome.state), outcome)

    def outcomes(self, limit: int, vm_id: str | None = None) -> list[tuple[str, Outcome]]:
        chosen = [(key[0], outcome) for key, outcome in self._outcomes.items() if vm_id in (None, outcome.step.vm_id)]
        return chosen[::-1][:limit]

    def save_migration(self, plan: MigrationPlan) -> None:
        self._migrations[plan.id] = plan

    def migrations(self, limit: int) -> list[MigrationPlan]:
        return sorted(self._migrations.values(), key=lambda plan: (-plan.created_ns, plan.id))[:limit]

    def save_document(self, name: str, text: str) -> None:
        self._documents[name] = text

    def documents(self) -> dict[str, str]:
        return dict(self._documents)

    def save_token(self, token_hash: str, name: str, created_ns: int) -> None:
        self._tokens[token_hash] = name

    def token_names(self) -> dict[str, str]:
        return dict(self._tokens)

    def close(self) -> None:
        """Nothing to release."""
