"""What the coordinator can see of itself on disk: how long its certificates last, and how full the disk is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509


def certificate_days(paths: Iterable[str], now_s: float) -> dict[str, float | None]:
    """file -> days until the first of its certificates expires (negative = it has), None = cannot be read. `now_s`: real Unix time."""
    return {path: _days(Path(path), now_s) for path in paths if path}


def disk_free(folder: Path) -> float | None:
    """Share of the folder's disk that this process may still use; None = cannot be read."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail / found.f_blocks if found.f_blocks else None


def _days(path: Path, now_s: float) -> float | None:
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return None
    now = datetime.fromtimestamp(now_s, UTC)
    return min((each.not_valid_after_utc - now).total_seconds() for each in certificates) / 86_400
