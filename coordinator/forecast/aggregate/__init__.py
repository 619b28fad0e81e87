"""Forecasts of sums of VMs: per application, client, host and fleet, with intervals calibrated on the sums themselves."""

from coordinator.forecast.aggregate.aggregator import Aggregator
from coordinator.forecast.aggregate.answer import AggregateForecast, GroupSums, sums_of
from coordinator.forecast.aggregate.groups import KINDS, GroupKey, Membership

__all__ = ["KINDS", "AggregateForecast", "Aggregator", "GroupKey", "GroupSums", "Membership", "sums_of"]
