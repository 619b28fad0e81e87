"""The real host of this test session: `real_host` builds it once, or skips with the reason why it cannot be built here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_host import RealHost, reason_to_skip


@pytest.fixture(scope="session")
def real_host() -> Iterator[RealHost]:
    """One private libvirtd; guests are added by `define_guest`."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with RealHost() as host:
        yield host
