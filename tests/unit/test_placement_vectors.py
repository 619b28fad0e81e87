"""Packing vectors into equal bins: whole, within capacity, as good as can be where that is known, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.placement.packing.vectors import Packing, pack_vectors
from shared.errors import ConfigError


def loads(sizes: np.ndarray, packing: Packing) -> np.ndarray:
    found = np.zeros((packing.bins, sizes.shape[1]))
    np.add.at(found, packing.place, sizes)
    return found


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), d=st.integers(1, 6), largest=st.floats(0.05, 1.0))
@settings(max_examples=40, deadline=None)
def test_every_item_is_in_a_bin_and_no_bin_is_over_capacity(seed: int, n: int, d: int, largest: float) -> None:
    sizes = np.random.default_rng(seed).uniform(0.0, largest, (n, d)) * 40.0
    found = pack_vectors(sizes, np.full(d, 40.0), seed=seed, effort=0.02)
    assert len(found.place) == n and set(found.place.tolist()) == set(range(found.bins))
    assert (loads(sizes, found) <= 40.0 * (1 + 1e-9)).all()
    assert found.bound <= found.bins


@pytest.mark.parametrize("seed", range(4))
def test_bins_filled_to_the_brim_by_triples_are_found_again(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.integers(20, 40, (25, 4)), random.integers(20, 40, (25, 4))
    sizes = random.permutation(np.concatenate([first, second, 100 - first - second])).astype(np.float64)
    found = pack_vectors(sizes, np.full(4, 100.0), seed=seed)
    assert found.bins == found.bound == 25


def test_ejection_saves_bins_that_the_constructions_need() -> None:
    sizes = np.random.default_rng(0).uniform(0.1, 0.5, (100, 6))
    built = pack_vectors(sizes, np.ones(6), effort=0.0)
    searched = pack_vectors(sizes, np.ones(6), effort=0.3, deadline_s=60.0)
    assert searched.bins < built.bins


def test_the_same_seed_gives_the_same_bytes() -> None:
    sizes = np.random.default_rng(3).uniform(0.05, 0.5, (120, 4))
    one, other = (pack_vectors(sizes, np.ones(4), seed=5, effort=0.2, deadline_s=60.0) for _ in range(2))
    assert one.place.tobytes() == other.place.tobytes() and not one.cut


def test_items_that_exclude_one_another_bound_the_bins() -> None:
    sizes = np.array([[0.6, 0.1], [0.6, 0.1], [0.1, 0.6], [0.6, 0.1]])
    found = pack_vectors(sizes, np.ones(2))
    assert found.bound == found.bins == 3


def test_a_deadline_that_has_passed_still_gives_a_packing_and_says_so() -> None:
    sizes = np.random.default_rng(1).uniform(0.05, 0.45, (200, 4))
    found = pack_vectors(sizes, np.ones(4), deadline_s=0.0)
    assert found.cut and (loads(sizes, found) <= 1.0 + 1e-9).all()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [([[2.0]], "item 0 is 2 of a bin"), ([[-1.0]], "negative or not a number"), ([[float("nan")]], "negative or not a number")],
)
def test_what_cannot_be_packed_is_refused(sizes: list[list[float]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pack_vectors(np.array(sizes), np.ones(1))
