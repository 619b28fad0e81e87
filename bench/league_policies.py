"""The policies of bench/league by name: what sits in the place of the product's rule, sizing or forecast in each world.

Every world has the real coordinator, agents, guard, levers and lead times. `static` and `reactive` differ by the control mode alone.
`late` and `low` are the product made worse on purpose: forecasts of half an hour ago taken for new ones, and peaks of which only the lower
quartile is believed. They have to lose, or the league proves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from agent.acting.reactive import Ask, Demand, LocalRule, Situation
from bench.league_fleet import Fleet
from bench.league_oracle import OracleSizer
from bench.league_rivals import MomKnobs, MomRule, OneDrsKnobs, OneDrsSizer, VpaKnobs, VpaRule
from bench.world import Settings
from bench.world_agent import AgentNode
from bench.world_causes import Causes
from coordinator.model import ForecastBlock
from coordinator.settings import sizing_policy
from coordinator.sizing.policy import SizingPolicy
from shared.config import ReactiveConfig, SizingConfig
from shared.model import Mode, VmSample

LATE_CYCLES: Final = 6
LOW_LEVEL: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`arrange`: the parts of a world (fields of Settings) for a fleet. `knobs`: what `--tune` may vary, name -> values."""

    name: str
    arrange: Callable[[Fleet, Mapping[str, Any]], dict[str, Any]]
    knobs: Mapping[str, tuple[Any, ...]]


def late() -> Callable[[ForecastBlock], ForecastBlock]:
    """Forecasts of half an hour ago."""
    kept: deque[ForecastBlock] = deque(maxlen=LATE_CYCLES + 1)

    def foresee(forecast: ForecastBlock) -> ForecastBlock:
        kept.append(forecast)
        return replace(kept[0], issued_s=forecast.issued_s)

    return foresee


def low(forecast: ForecastBlock) -> ForecastBlock:
    """Nobody's peak is believed beyond its lower quartile."""
    at = forecast.levels.index(LOW_LEVEL)
    return replace(forecast, peak_quantiles=np.minimum(forecast.peak_quantiles, forecast.peak_quantiles[..., at : at + 1]))


class Quiet:
    """A LocalRule that asks for nothing: who knows the future needs no reflexes, and reflexes take room from others."""

    def asks(
        self, reading: VmSample, situation: Situation, demand: Demand, now_ns: int, *, planned: bool = False, sustained: bool = False
    ) -> list[Ask]:
        """As LocalRule."""
        return []


def _static(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {"modes": lambda _: Mode.OBSERVE}


def _reactive(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {"modes": lambda _: Mode.REACTIVE, "reactive": ReactiveConfig(**knobs)}


def _vpa(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    def rule(node: AgentNode) -> LocalRule:
        work = fleet.works[node.index]
        order = sorted(range(len(work.file.vms)), key=lambda i: work.file.vms[i].vm_id)
        return VpaRule(VpaKnobs(**knobs), ReactiveConfig(), [(work.mean[i], work.peak[i]) for i in order], fleet.start_s)

    return {"modes": lambda _: Mode.REACTIVE, "rule": rule}


def _mom(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    def free(node: AgentNode) -> float:
        limit = node.host.capacity().memory_commit_bytes
        return 1.0 - sum(vm.memory for vm in node.host.machines) / limit

    return {"modes": lambda _: Mode.REACTIVE, "rule": lambda node: MomRule(MomKnobs(**knobs), ReactiveConfig(), partial(free, node))}


def _onedrs(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {"modes": lambda _: Mode.PREDICTIVE, "sizer": OneDrsSizer(OneDrsKnobs(**knobs))}


def _predictive(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    local = {name: value for name, value in knobs.items() if name in ReactiveConfig.__struct_fields__}
    sizing = {name: value for name, value in knobs.items() if name not in local}
    return {"modes": lambda _: Mode.PREDICTIVE, "sizing": tuned(sizing), "reactive": ReactiveConfig(**local)}


def tuned(knobs: Mapping[str, Any]) -> SizingPolicy:
    """The product's own policy with some fields changed; `scale` multiplies the price of every resource."""
    fields = dict(knobs)
    policy = sizing_policy(SizingConfig(price=fields.pop("scale", 1.0)))
    return replace(policy, **fields)


def _late(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {**_predictive(fleet, knobs), "foresee": late()}


def _low(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {**_predictive(fleet, knobs), "foresee": low}


def _oracle(fleet: Fleet, knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {"modes": lambda _: Mode.PREDICTIVE, "sizer": OracleSizer(fleet.ahead, fleet.start_s), "rule": lambda _: Quiet()}


POLICIES: Final[Mapping[str, Policy]] = {
    policy.name: policy
    for policy in (
        Policy(name="static", arrange=_static, knobs={}),
        Policy(
            name="reactive",
            arrange=_reactive,
            knobs={
                "shrink_window_s": (300, 600),
                "shrink_margin_permille": (1100, 1250),
                "headroom_permille": (1250, 1400),
            },
        ),
        Policy(
            name="vpa-like",
            arrange=_vpa,
            knobs={"percentile": (0.90, 0.98), "margin": (1.0, 1.15), "half_life_s": (10_800.0, 86_400.0)},
        ),
        Policy(name="mom-like", arrange=_mom, knobs={"pressure": (0.1, 0.2, 0.4), "guest_free": (0.05, 0.1, 0.2)}),
        Policy(name="onedrs-like", arrange=_onedrs, knobs={"predictive": (0.5, 1.0), "margin": (1.3, 1.8), "memory_margin": (1.05, 1.15)}),
        Policy(name="predictive", arrange=_predictive, knobs={"scale": (0.3, 1.0, 3.0), "wait_reserve": (0.05, 0.1, 0.2)}),
        Policy(name="oracle", arrange=_oracle, knobs={}),
        Policy(name="late", arrange=_late, knobs={}),
        Policy(name="low", arrange=_low, knobs={}),
    )
}


def settings_of(policy: str, fleet: Fleet, knobs: Mapping[str, Any], *, seed: int, hours: float, watch: Causes | None = None) -> Settings:
    """A world's settings for one policy on one fleet."""
    fields: dict[str, Any] = {"sizing": sizing_policy(SizingConfig()), **POLICIES[policy].arrange(fleet, knobs)}
    return Settings(seed=seed, hours=hours, history=[work.history() for work in fleet.works], watch=watch, **fields)
