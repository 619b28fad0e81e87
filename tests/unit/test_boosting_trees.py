"""The walk without LightGBM: bit-equal to Booster.predict for every kind of missing value, and safe against broken bytes."""

from __future__ import annotations

from dataclasses import replace

import lightgbm
import numpy as np
import pytest

from coordinator.forecast.boosting.trees import Forest, pack, parse, restore

FEATURES = 12


def rows(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = rng.normal(0.0, 2.0, (count, FEATURES)).astype(np.float32)
    data[:, 1] = np.round(data[:, 1])  # ties on thresholds
    data[:, 2] *= np.float32(1e30)
    data[rng.random(data.shape) < 0.2] = np.nan
    return data


def booster(rounds: int = 12, **parameters: object) -> lightgbm.Booster:
    data = rows(1500, 0)
    data[:, 3] = np.nan_to_num(data[:, 3])  # no NaN in training: LightGBM reads NaN as 0 there
    known = np.nan_to_num(data)
    target = known[:, 0] ** 2 + known[:, 1] + known[:, 3] + np.isnan(data[:, 4]) + np.random.default_rng(1).normal(size=len(data))
    base = {"objective": "quantile", "alpha": 0.9, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}
    return lightgbm.train({**base, **parameters}, lightgbm.Dataset(data, label=target), num_boost_round=rounds)


FOREST = {"boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1, "feature_fraction": 0.6}


@pytest.mark.parametrize("parameters", [{}, {"num_leaves": 2}, {"num_leaves": 64}, FOREST], ids=["gbdt", "stumps", "64 leaves", "rf"])
@pytest.mark.parametrize("count", [1, 64, 333])
def test_every_row_has_the_very_bits_of_booster_predict(parameters: dict[str, object], count: int) -> None:
    models = [booster(alpha=0.5, **parameters), booster(alpha=0.9, rounds=5, **parameters)]
    forest = parse([model.model_to_string() for model in models])
    asked = rows(count, 2)
    said = forest.predict(asked)
    assert said.shape == (2, count, 1)
    for k, model in enumerate(models):
        assert (said[k, :, 0] == model.predict(asked)).all()


def test_what_is_missing_alone_can_split() -> None:
    model = booster(num_leaves=4)
    asked = np.full((2, FEATURES), np.nan, dtype=np.float32)
    asked[1] = np.finfo(np.float32).max  # the largest number still goes with the numbers
    assert (parse([model.model_to_string()]).predict(asked)[0, :, 0] == model.predict(asked)).all()


def test_steps_continue_the_row() -> None:
    model = booster()
    forest = parse([model.model_to_string()])
    static, steps = rows(70, 3)[:, :8], np.stack([rows(70, 4)[:, 8:], rows(70, 5)[:, 8:]], axis=1)
    said = forest.predict(static, steps)
    for step in range(2):
        assert (said[0, :, step] == model.predict(np.concatenate([static, steps[:, step]], axis=1))).all()


def test_a_tree_that_never_split_says_its_one_leaf() -> None:
    model = booster(rounds=1, min_data_in_leaf=10_000)
    assert (parse([model.model_to_string()]).predict(rows(3, 0))[0, :, 0] == model.predict(rows(3, 0))).all()


def test_what_the_walk_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves: allowed 1 to 64"):
        parse([booster(objective="l2", num_leaves=200, min_data_in_leaf=2).model_to_string()])
    with pytest.raises(ValueError, match="zero as missing"):
        parse([booster(zero_as_missing=True).model_to_string()])
    with pytest.raises(ValueError, match="not a LightGBM model"):
        parse(["tree"])
    with pytest.raises(ValueError, match="rows of 3 features: the model was trained on 12"):
        parse([booster(rounds=1).model_to_string()]).predict(np.zeros((1, 3), dtype=np.float32))


@pytest.fixture(scope="module")
def forest() -> Forest:
    return parse([booster().model_to_string()])


def test_packed_and_restored_says_the_same(forest: Forest) -> None:
    asked = rows(50, 6)
    assert (restore(pack(forest)).predict(asked) == forest.predict(asked)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("source", 9999), ("source", -1), ("inputs", 12), ("nodes", 99), ("starts", 5), ("leaf", np.nan), ("divisor", 0)],
)
def test_arrays_that_would_send_the_walk_astray_are_refused(forest: Forest, name: str, value: float) -> None:
    broken = getattr(forest, name).copy()
    broken.flat[0] = value
    with pytest.raises(ValueError, match="do not fit"):
        restore(pack(replace(forest, **{name: broken})))


def test_packed_arrays_of_another_type_or_size_are_refused(forest: Forest) -> None:
    packed = pack(forest)
    with pytest.raises(ValueError, match="forest without leaf"):
        restore({name: value for name, value in packed.items() if name != "leaf"})
    with pytest.raises(ValueError, match="threshold of type <f8"):
        restore({**packed, "threshold": ("<f8", *packed["threshold"][1:])})
    kind, shape, content = packed["source"]
    with pytest.raises(ValueError, match=r"reshape|multiple"):
        restore({**packed, "source": (kind, shape, content[:-4])})
