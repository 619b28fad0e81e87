"""Six hours ahead in half-hour blocks, for plans: see planner.py."""

from coordinator.forecast.outlook.blocks import BLOCK_S
from coordinator.forecast.outlook.join import join_outlooks
from coordinator.forecast.outlook.planner import OutlookPlanner

__all__ = ["BLOCK_S", "OutlookPlanner", "join_outlooks"]
