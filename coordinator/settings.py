"""Configuration to the parameters of the stages. Pure."""

from __future__ import annotations

import dataclasses
from typing import Final

from coordinator.calendars import zone_of
from coordinator.executing import ExecutionPolicy
from coordinator.forecast.challengers import find
from coordinator.forecast.covariates import LocalDays
from coordinator.forecast.engine import ForecastOptions
from coordinator.learning.challenging import ChallengeSchedule
from coordinator.learning.default_slas import DefaultSlas, sla_of_thresholds
from coordinator.learning.sla import SlaThresholds
from coordinator.migration_plan import Patience, WaveLimits
from coordinator.planning.sleep import PowerPolicy
from coordinator.sizing.feasible import Objectives
from coordinator.sizing.policy import SizingPolicy
from shared.config import CoordinatorConfig, PriorityTable, SizingConfig, SlaConfig
from shared.errors import ConfigError
from shared.units import DISK

HOLIDAY_YEARS: Final = range(2005, 2055)  # fixed: no clock here, and simulated ones run in the past; fifty years are 0.5 MB of a worker


def sizing_policy(config: SizingConfig) -> SizingPolicy:
    """The sizing stack's policy. Raises ConfigError where a higher priority would get less than a lower one."""
    default = SizingPolicy()
    cpu, memory, disk, rx, tx = (config.price * each for each in default.price)
    size = _by_priority(config.size_quantile)
    boot, move = config.boot_boost_permille / 1000, config.move_boost_permille / 1000
    evidence = config.shrink_evidence_buckets
    pool = config.critical_pool_permille / 1000
    low, normal, high, critical = (min(lower, top) for lower, top in zip(default.lower_quantile, size, strict=True))
    return dataclasses.replace(
        default,
        confidence_multiplier=_by_priority(config.confidence_multiplier),
        price=(cpu, memory, disk, rx, tx),
        reserve_share=config.reserve_permille / 1000,
        size_quantile=size,
        lower_quantile=(low, normal, high, critical),
        shrink_evidence=(evidence, evidence, max(evidence, default.shrink_evidence[DISK]), evidence, evidence),
        dead_band=(config.dead_band_permille / 1000,) * 5,
        turns=config.flap_reversals,
        turn_window_s=float(config.flap_window_s),
        penalty=_by_priority(config.penalty),
        critical_pool=(pool, pool, 0.0, pool, pool),
        spare_hosts=config.spare_hosts,
        boot_boost=(boot, 0.0, boot, boot / 2, boot / 2),
        boot_boost_s=float(config.boot_boost_s),
        move_boost=(move, 0.0, move, move, move),
        move_boost_s=float(config.move_boost_s),
    )


def objectives(config: SlaConfig) -> Objectives:
    """Clients' error budgets. Raises ConfigError for a client that is named twice or a share out of range."""
    clients: dict[str, float] = {}
    for i, line in enumerate(config.clients):
        name, _, permille = line.rpartition("=")
        if name in clients:
            raise ConfigError(f"sla.clients[{i}] = {line!r}: {name!r} is named twice")
        if not 0.01 <= float(permille) <= 1000.0:
            raise ConfigError(f"sla.clients[{i}] = {line!r}: allowed 0.01 to 1000 permille")
        clients[name] = float(permille) / 1000.0
    return Objectives(budget=config.budget_permille / 1000.0, clients=clients, period_s=config.period_s)


def default_slas(config: SlaConfig) -> DefaultSlas:
    """SLAs of VMs that have none of their own, by priority; clients' own budgets as `objectives`. Raises ConfigError as it does."""
    wanted = config.objectives
    known = SlaThresholds(ready_permille=wanted.ready_permille, memory_stall_permille=wanted.memory_pressure_permille)
    low, normal, high, critical = (
        sla_of_thresholds(
            name,
            share_permille=getattr(wanted.share_permille, name),
            thresholds=known,
            unmet_permille=wanted.unmet_permille,
            drops_permille=wanted.drops_permille,
            period_s=config.period_s,
        )
        for name in ("low", "normal", "high", "critical")
    )
    own = {client: share * 1000.0 for client, share in objectives(config).clients.items()}
    return DefaultSlas(by_priority=(low, normal, high, critical), clients=own)


def forecast_options(config: CoordinatorConfig) -> ForecastOptions:
    """The forecast engine's options. Raises ConfigError for a challenger that there is not, a time zone or a country that is none."""
    try:
        names = tuple(dict.fromkeys(find(name).name for name in config.forecast.challengers))
    except ValueError as error:
        raise ConfigError(f"forecast.challengers: {error}") from error
    return ForecastOptions(ring=max(48, config.cycle.history_buckets), challengers=names, days=local_days(config))


def local_days(config: CoordinatorConfig) -> LocalDays:
    """The operator's days. Raises ConfigError for a time zone that is none, or a country whose holidays are not known."""
    zone = zone_of(config)
    if not config.forecast.holidays:
        return LocalDays(zone=zone)
    # the library costs 45 ms: who names no country need not wait for it
    from coordinator.forecast.events.public_holidays import holiday_spans  # noqa: PLC0415

    calendars = []
    for i, country in enumerate(config.forecast.holidays):
        try:
            spans = holiday_spans(country, zone, HOLIDAY_YEARS)
        except ValueError as error:
            raise ConfigError(f"forecast.holidays[{i}]: {error}") from error
        calendars.append(tuple((int(start), int(end)) for start, end in spans))
    return LocalDays(zone=zone, holidays=tuple(calendars))


def challenge_schedule(config: CoordinatorConfig) -> tuple[ChallengeSchedule, dict[str, str]]:
    """When challengers have a turn; and those that cannot run here, with the reason. Raises ConfigError as `forecast_options`."""
    reasons = {name: find(name).available() for name in forecast_options(config).challengers}
    usable = [name for name, reason in reasons.items() if reason is None]
    schedule = ChallengeSchedule(usable, config.forecast.challenge_every_s, config.forecast.challenge_cpu_s, config.seed)
    return schedule, {name: reason for name, reason in reasons.items() if reason is not None}


def execution_policy(config: CoordinatorConfig) -> ExecutionPolicy:
    """What becomes of placement's moves."""
    placement, power, default = config.placement, config.power, ExecutionPolicy()
    return ExecutionPolicy(
        execute=placement.execute == "execute",
        always=placement.approve == "always",
        moves=dataclasses.replace(
            default.moves,
            per_source=placement.per_host,
            per_target=placement.per_host,
            fleet=placement.wave_vms,
            block=placement.wave_vms,
            calm=placement.calm_permille / 1000,
            settle_s=float(placement.settle_s),
        ),
        limits=WaveLimits(
            vms=placement.wave_vms,
            hosts=placement.wave_hosts,
            racks=placement.wave_racks,
            clients=placement.wave_clients,
            client_share=placement.wave_client_permille / 1000,
            per_source=placement.per_host,
            per_target=placement.per_host,
        ),
        patience=Patience(
            begin_s=float(placement.begin_s),
            seen_s=float(placement.seen_s),
            settle_s=float(placement.settle_s),
            regressions=placement.regressions,
            failed_s=float(placement.failed_s),
            cooldown_s=float(placement.cooldown_s),
        ),
        power=PowerPolicy(
            spare_hosts=power.spare_hosts,
            empty_s=float(power.empty_s),
            margin_s=float(power.margin_s),
            lead_s=float(power.lead_s),
            repaid_s=float(power.repaid_s),
        ),
    )


def _by_priority(table: PriorityTable) -> tuple[float, float, float, float]:
    return (table.low, table.normal, table.high, table.critical)
