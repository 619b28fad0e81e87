"""Public holidays of a country as spans of time, for calendar.day_features. Pure; the library `holidays` knows the rules.

Kept apart from calendar.py because the library costs 45 ms to import and a forecast worker needs only the spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Final

import holidays as library
import numpy as np
from numpy.typing import NDArray

MAX_YEARS: Final = 50


def holiday_spans(country: str, zone: tzinfo, years: Sequence[int]) -> NDArray[np.int64]:
    """Public holidays of a country ("DE") or a part of it ("DE-BY") as [start, end) in Unix seconds, int64[n, 2], ascending.

    Adjoining days make one span. Raises ValueError for a country or part that the library does not know, or more than MAX_YEARS years.
    """
    if len(years) > MAX_YEARS:
        raise ValueError(f"years {len(years)}: allowed {MAX_YEARS}")
    name, _, part = country.partition("-")
    try:
        found = library.country_holidays(name, subdiv=part or None, years=list(years))
    except NotImplementedError as error:  # the library's word for a country or part that it does not know
        raise ValueError(f"holidays {country!r}: {error}; allowed an ISO 3166 country (DE) or a part of one (DE-BY)") from error
    spans: list[list[int]] = []
    for day in sorted(found):
        begin, end = _midnight(day, zone), _midnight(day + timedelta(days=1), zone)
        if spans and spans[-1][1] == begin:
            spans[-1][1] = end
        else:
            spans.append([begin, end])
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _midnight(day: date, zone: tzinfo) -> int:
    return int(datetime.combine(day, time(), zone).timestamp())
