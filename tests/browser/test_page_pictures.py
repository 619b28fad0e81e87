"""Pictures of the page for the documents, kept only where TIDEGATE_PICTURES names their folder (docs/pictures)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from big_fleet import BigFleet
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

FOLDER = os.environ.get("TIDEGATE_PICTURES")
MOST_BYTES = 150_000
SHOTS = {
    "vm": ("vm/vm-02-01?hours=6", {"viewport": {"width": 1100, "height": 760}, "color_scheme": "light"}),
    "plan-dark": ("plan", {"viewport": {"width": 1280, "height": 760}, "color_scheme": "dark"}),
    "host-phone": ("host/kvm-02", {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"}),
}


def test_the_pictures_of_the_documents(watch: Any, served: Any, serve: Any, tmp_path: Path) -> None:
    folder = Path(FOLDER) if FOLDER else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    for name, (view, context) in SHOTS.items():
        page = watch(served.url, **context).see(view)
        page.screenshot(path=folder / f"{name}.png")
    big = serve(BigFleet())
    try:
        page = watch(big.url, viewport={"width": 1280, "height": 860}).page
        expect(page.locator("#heat-now-legend")).to_contain_text("10 silent")
        page.screenshot(path=folder / "fleet.png")
    finally:
        big.stop()
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.png")}
    assert set(sizes) >= {"fleet.png", *(f"{name}.png" for name in SHOTS)}
    assert max(sizes.values()) <= MOST_BYTES, sizes
    assert min(sizes.values()) > 10_000, sizes  # a page that stayed empty is smaller
