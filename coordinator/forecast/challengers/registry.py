"""Challengers by name, and the names that the product's concept uses for them."""

from __future__ import annotations

from typing import Final

from coordinator.forecast.challengers.additive import ProphetModel
from coordinator.forecast.challengers.classical import CLASSICAL
from coordinator.forecast.challengers.forests import TREES
from coordinator.forecast.challengers.foundation import FoundationModel
from coordinator.forecast.challengers.neural import NEURAL
from coordinator.forecast.challengers.port import Challenger

_ALL: Final[tuple[Challenger, ...]] = (*CLASSICAL, *TREES, ProphetModel(), *NEURAL, FoundationModel())
_BY_NAME: Final = {challenger.name: challenger for challenger in _ALL}
CONCEPT: Final = {
    "ARIMA": "auto_arima",
    "exponential smoothing": "auto_ets",
    "Prophet": "prophet",
    "random forest": "random_forest",
    "gradient boosting": "gradient_boosting",
    "LSTM": "lstm",
    "Transformer": "patchtst",
}


def registered() -> tuple[str, ...]:
    """Names that `find` takes, whether their packages are installed or not, in a fixed order."""
    return tuple(_BY_NAME)


def find(name: str) -> Challenger:
    """The challenger of this name, or of the concept's name for it. Raises ValueError naming what is allowed."""
    found = _BY_NAME.get(CONCEPT.get(name, name))
    if found is None:
        raise ValueError(f"challenger {name!r}: allowed {', '.join(registered())}, or as {', '.join(CONCEPT)}")
    return found


def usable() -> tuple[str, ...]:
    """Of `registered`, those whose packages are here."""
    return tuple(name for name, challenger in _BY_NAME.items() if challenger.available() is None)
