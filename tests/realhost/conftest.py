"""The real hosts of these tests: fixtures build them once, or skip with the reason why they cannot be built here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_host import RealHost, reason_to_skip, two_hosts


@pytest.fixture(scope="session")
def real_host() -> Iterator[RealHost]:
    """One private libvirtd; guests are added by `define_guest`."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with RealHost() as host:
        yield host


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[RealHost, RealHost]]:
    """Two of them with a cable between, for VMs that move."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as pair:
        yield pair
