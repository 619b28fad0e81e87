"""The slow loop: models too dear for the tick forecast some series now and then, and join the pool with what they said.

`select` (selection.py) says which series each challenger gets, `take_turn` (turn.py) asks them within a budget, `Board` (board.py) makes
one voice of their answers for as long as they reach. `registered`, `find`, `usable` and `CONCEPT` (registry.py) name the
challengers. No library behind a challenger is imported before it is asked, so the tick may hold a Board.
"""

from coordinator.forecast.challengers.board import Board
from coordinator.forecast.challengers.port import LEAST_READINGS, MOST_STEPS, Answer, Challenger, ChallengerForecast, MissingExtra, Question
from coordinator.forecast.challengers.registry import CONCEPT, find, registered, usable
from coordinator.forecast.challengers.selection import Standing, remembered, select
from coordinator.forecast.challengers.turn import Report, Turn, run, take_turn

__all__ = [
    "CONCEPT",
    "LEAST_READINGS",
    "MOST_STEPS",
    "Answer",
    "Board",
    "Challenger",
    "ChallengerForecast",
    "MissingExtra",
    "Question",
    "Report",
    "Standing",
    "Turn",
    "find",
    "registered",
    "remembered",
    "run",
    "select",
    "take_turn",
    "usable",
]
