"""Silences: who wants to hear nothing of which alerts, until when, and why. Pure.

A silence is a set of matchers over labels; all must hold, as in Alertmanager. A label that an alert lacks is the empty string.
Regular expressions are anchored at both ends and bounded in length; they are RE's of Python, checked before they are taken.
Source: https://prometheus.io/docs/alerting/latest/alertmanager/#silences
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta

MAX_SILENCES: Final = 200  # each is held against each new alert: 500 at once take 60 ms
MAX_SILENCE_S: Final = 365 * 86_400
# a repeated group that itself repeats can take exponential time: "(a+)+"
_NESTED: Final = re.compile(r"\([^)]*[+*}][^)]*\)\s*[+*{]")


class Matcher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One label: equal to `value`, or (regex) matched by it as a whole; not so where `equal` is false."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=64)]
    value: Annotated[str, Meta(max_length=256)]
    regex: bool = False
    equal: bool = True

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels are meant."""
        found = labels.get(self.name, "")
        same = compiled(self.value).fullmatch(found) is not None if self.regex else found == self.value
        return same is self.equal


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Times in Unix seconds of the coordinator's clock."""

    id: str
    matchers: tuple[Matcher, ...]
    starts_s: float
    ends_s: float
    created_by: str
    comment: str

    def active(self, now_s: float) -> bool:
        """In force now."""
        return self.starts_s <= now_s < self.ends_s

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether all matchers hold."""
        return all(matcher.matches(labels) for matcher in self.matchers)


def problem(matchers: Iterable[Matcher]) -> str | None:
    """What is wrong with them; None = nothing. One that matches whatever has no such label says nothing about what is meant."""
    told = tuple(matchers)
    for matcher in told:
        if matcher.regex:
            if _NESTED.search(matcher.value):
                return f"{matcher.name}: a repeated group that itself repeats is not allowed"
            try:
                compiled(matcher.value)
            except re.error as error:
                return f"{matcher.name}: not a regular expression: {error}"
    if all(matcher.matches({}) for matcher in told):
        return "at least one matcher must not match an empty label"
    return None


def silenced_by(labels: Mapping[str, str], silences: Iterable[Silence]) -> tuple[str, ...]:
    """Ids of the silences that cover these labels, sorted."""
    return tuple(sorted(each.id for each in silences if each.covers(labels)))


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """Raises re.error."""
    return re.compile(pattern)
