"""Trained trees without LightGBM: parsed once, laid out as arrays, walked for sixty-four rows at a time.

Every node of a tree is compared for a whole block of rows, and each false test clears the leaves left of it in a bit mask; the lowest bit
that stays is the leaf (QuickScorer: Lucchese et al., SIGIR 2015). There are no branches, so the compares vectorise across rows: 31 nodes
of 16 rows at once cost less than six dependent loads of a walk. Forests of several quantiles share one transposed block of rows.

Invariant: bit-equal to `Booster.predict` for rows of finite float32 and NaN: x <= t is decided by t rounded down to float32 without loss;
leaves are added in the order of the trees, in double. Missing values follow each node as LightGBM has them: NaN goes the default way where
the feature had NaN in training, and counts as 0 where it had none. Categorical splits and zero-as-missing are refused: we train none.
"""
# mypy: disallow-untyped-decorators=false
# (numba.njit is untyped)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64

LANES: Final = 64
MOST_LEAVES: Final = 64  # one bit each
AS_IS, TO_THE_RIGHT, AS_ZERO = range(3)  # what a node makes of NaN: x > t is false (left), true (right), 0 > t
_CATEGORICAL, _DEFAULT_LEFT, _ZERO_MISSING, _NAN_MISSING = 1, 2, 4, 8  # bits of LightGBM's decision_type
# A de Bruijn sequence turns the lowest set bit into a slot by one product and one shift: leaves are stored by slot.
_DE_BRUIJN: Final = {np.uint32: (np.uint32(0x077CB531), np.uint32(27)), np.uint64: (np.uint64(0x03F79D71B4CB0A89), np.uint64(58))}

_ARRAYS: Final[dict[str, tuple[int, tuple[str, ...]]]] = {  # axes, types
    "starts": (1, ("<i8",)),
    "divisor": (1, ("<f8",)),
    "inputs": (2, ("<i4",)),
    "nodes": (1, ("<i4",)),
    "source": (2, ("<i4",)),
    "threshold": (2, ("<f4",)),
    "mask": (2, ("<u4", "<u8")),
    "leaf": (2, ("<f8",)),
}


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Trees of k outputs, all of one set of features. Immutable; build with `parse` or `restore`."""

    features: int
    starts: NDArray[np.int64]  # [k + 1] first tree of each output
    divisor: F64  # [k] number of trees that are averaged (random forest); 1 = they are added
    inputs: NDArray[np.int32]  # [u, 2] feature and treatment of NaN of each distinct input of a node
    nodes: NDArray[np.int32]  # [t] nodes of each tree
    source: NDArray[np.int32]  # [t, most nodes] input of each node
    threshold: F32  # [t, most nodes]; right when input > threshold
    mask: NDArray[Any]  # uint32 or uint64 [t, most nodes]: the leaves that stay when the test sends right
    leaf: F64  # [t, 32 or 64] by de Bruijn slot

    @property
    def outputs(self) -> int:
        """Number of outputs (quantiles)."""
        return len(self.divisor)

    def predict(self, static: F32, steps: F32 | None = None) -> F64:
        """Values float64[k, n, s] for rows static[n, p] followed by steps[n, s, q], p + q = `features`; no steps: float64[k, n, 1].

        Raises ValueError for another number of features.
        """
        turns = np.zeros((len(static), 1, 0), dtype=np.float32) if steps is None else steps
        given = static.shape[1] + turns.shape[2]
        if given != self.features:
            raise ValueError(f"rows of {given} features: the model was trained on {self.features}")
        multiplier, shift = _DE_BRUIJN[self.mask.dtype.type]
        out = np.empty((self.outputs, len(static), turns.shape[1]))
        _predict(
            np.ascontiguousarray(static, dtype=np.float32),
            np.ascontiguousarray(turns, dtype=np.float32),
            self.starts,
            self.divisor,
            self.inputs,
            self.nodes,
            self.source,
            self.threshold,
            self.mask,
            self.leaf,
            multiplier,
            shift,
            out,
        )
        return out


@njit(cache=True)
def _fill_block(static: F32, turn: F32, first: int, inputs: NDArray[np.int32], block: F32) -> None:
    """Rows first..first+LANES of the wanted inputs, transposed to [u, LANES]; lanes beyond the end repeat the last row."""
    n, p = static.shape
    for u in range(inputs.shape[0]):
        feature, treatment = inputs[u, 0], inputs[u, 1]
        for j in range(LANES):
            i = min(first + j, n - 1)
            value = static[i, feature] if feature < p else turn[i, feature - p]
            if treatment != AS_IS and np.isnan(value):
                value = np.float32(np.inf) if treatment == TO_THE_RIGHT else np.float32(0.0)
            block[u, j] = value


@njit(cache=True)
def _predict(  # noqa: PLR0917  (numba: no structures)
    static: F32,
    turns: F32,
    starts: NDArray[np.int64],
    divisor: F64,
    inputs: NDArray[np.int32],
    nodes: NDArray[np.int32],
    source: NDArray[np.int32],
    threshold: F32,
    mask: NDArray[Any],
    leaf: F64,
    multiplier: Any,
    shift: Any,
    out: F64,
) -> None:
    n, s = static.shape[0], turns.shape[1]
    block = np.empty((inputs.shape[0], LANES), dtype=np.float32)
    alive = np.empty(LANES, dtype=mask.dtype)
    total = np.empty(LANES)
    every = ~np.zeros(1, dtype=mask.dtype)[0]
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        for step in range(s):
            _fill_block(static, turns[:, step], first, inputs, block)
            for k in range(divisor.shape[0]):
                total[:] = 0.0
                for tree in range(starts[k], starts[k + 1]):
                    alive[:] = every
                    for node in range(nodes[tree]):
                        row = block[source[tree, node]]
                        limit = threshold[tree, node]
                        keep = mask[tree, node]
                        for j in range(LANES):
                            alive[j] &= keep if row[j] > limit else every
                    for j in range(LANES):
                        alive[j] = (alive[j] & (~alive[j] + 1)) * multiplier
                    for j in range(LANES):
                        total[j] += leaf[tree, alive[j] >> shift]
                for j in range(count):
                    out[k, first + j, step] = total[j] / divisor[k]


# ---- to and from bytes


def pack(forest: Forest) -> dict[str, tuple[str, list[int], bytes]]:
    """Arrays as (type, shape, little-endian bytes), for msgpack."""
    arrays = {name: np.ascontiguousarray(getattr(forest, name)) for name in _ARRAYS}
    out = {name: (array.dtype.str, list(array.shape), array.tobytes()) for name, array in arrays.items()}
    out["features"] = ("", [forest.features], b"")
    return out


def restore(packed: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Forest:
    """Inverse of `pack`. Raises ValueError for anything that could send the walk outside its arrays."""
    missing = {*_ARRAYS, "features"} - set(packed)
    if missing:
        raise ValueError(f"forest without {', '.join(sorted(missing))}")
    arrays: dict[str, NDArray[Any]] = {}
    for name, (axes, types) in _ARRAYS.items():
        kind, shape, content = packed[name]
        if kind not in types or len(shape) != axes:
            raise ValueError(f"{name} of type {kind} and {len(shape)} axes: allowed {' or '.join(types)} and {axes}")
        arrays[name] = np.frombuffer(content, dtype=kind).reshape(shape)  # ValueError when they don't fit
    forest = Forest(features=int(packed["features"][1][0]), **arrays)
    trees, most = forest.source.shape
    bits = forest.mask.dtype.itemsize * 8
    fits = (
        forest.features > 0 and forest.outputs > 0 and len(forest.inputs) > 0,
        forest.starts.shape == (forest.outputs + 1,) and forest.starts[0] == 0 and forest.starts[-1] == trees,
        bool((np.diff(forest.starts) >= 0).all() and (forest.divisor > 0).all()),
        forest.inputs.shape[1] == 2 and _within(forest.inputs[:, 0], forest.features) and _within(forest.inputs[:, 1], 3),
        forest.nodes.shape == (trees,) and _within(forest.nodes, most + 1),
        forest.threshold.shape == forest.mask.shape == (trees, most) and forest.leaf.shape == (trees, bits),
        _within(forest.source, len(forest.inputs)) and bool(np.isfinite(forest.leaf).all()),
    )
    if not all(fits):
        raise ValueError(f"forest of {trees} trees whose arrays do not fit each other")
    return forest


def _within(values: NDArray[Any], limit: int) -> bool:
    return bool(((values >= 0) & (values < limit)).all())


# ---- from LightGBM's text


def parse(texts: Sequence[str]) -> Forest:
    """One output a model text (`Booster.model_to_string`). Raises ValueError for what the walk cannot do."""
    models = [_Model(text) for text in texts]
    widths = {model.features for model in models}
    if len(widths) != 1:
        raise ValueError(f"models of {sorted(widths)} features: all must have the same")
    trees = [tree for model in models for tree in model.trees]
    leaves = max(len(tree.leaf) for tree in trees)
    if leaves > MOST_LEAVES:
        raise ValueError(f"a tree of {leaves} leaves: allowed 1 to {MOST_LEAVES}")
    word = np.uint32 if leaves <= 32 else np.uint64
    most = max(1, *(len(tree.feature) for tree in trees))
    wanted = sorted({pair for tree in trees for pair in tree.inputs()}) or [(0, AS_IS)]
    place = {pair: u for u, pair in enumerate(wanted)}
    count = len(trees)
    source = np.zeros((count, most), dtype=np.int32)
    threshold = np.full((count, most), np.inf, dtype=np.float32)
    mask = np.full((count, most), np.iinfo(word).max, dtype=word)
    leaf = np.zeros((count, np.dtype(word).itemsize * 8))
    multiplier, shift = _DE_BRUIJN[word]
    for t, tree in enumerate(trees):
        order, cleared = tree.leaves_and_masks()
        used = len(tree.feature)
        source[t, :used] = [place[pair] for pair in tree.inputs()]
        threshold[t, :used] = _round_down(tree.threshold)
        mask[t, :used] = [int(np.iinfo(word).max) & ~bits for bits in cleared]
        with np.errstate(over="ignore"):
            slots = np.left_shift(word(1), np.arange(len(order)).astype(word)) * multiplier >> shift
        leaf[t, slots.astype(np.int64)] = tree.leaf[order]
    return Forest(
        features=models[0].features,
        starts=np.cumsum([0, *(len(model.trees) for model in models)]).astype(np.int64),
        divisor=np.array([float(len(model.trees)) if model.averaged else 1.0 for model in models]),
        inputs=np.array(wanted, dtype=np.int32),
        nodes=np.array([len(tree.feature) for tree in trees], dtype=np.int32),
        source=source,
        threshold=threshold,
        mask=mask,
        leaf=leaf,
    )


def _round_down(threshold: F64) -> F32:
    """The largest finite float32 not above each threshold: for a finite float32 x, x <= threshold and x <= the result are the same.

    LightGBM splits what is missing from the rest at infinity: there NaN (as infinity) must still be above the threshold.
    """
    with np.errstate(over="ignore"):
        rounded = threshold.astype(np.float32)
    largest = np.finfo(np.float32).max
    return np.minimum(np.where(rounded.astype(np.float64) > threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded), largest)


class _Tree:
    """One `Tree=` section."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        def read(name: str, kind: Any) -> NDArray[Any]:
            return np.array(fields.get(name, "").split(), dtype=kind)

        if fields.get("is_linear", "0") != "0":
            raise ValueError("a tree with linear leaves: only constant leaves can be walked")
        self.leaf = read("leaf_value", np.float64)
        self.feature = read("split_feature", np.int64)
        self.threshold = read("threshold", np.float64)
        self.decision = read("decision_type", np.int64)
        self.left, self.right = read("left_child", np.int64), read("right_child", np.int64)
        if ((self.decision & (_CATEGORICAL | _ZERO_MISSING)) > 0).any():
            raise ValueError("a tree with categorical splits or zero as missing: only numerical splits with NaN as missing can be walked")

    def inputs(self) -> list[tuple[int, int]]:
        """Feature and treatment of NaN of every node."""
        default = np.where(self.decision & _DEFAULT_LEFT, AS_IS, TO_THE_RIGHT)
        treatment = np.where(self.decision & _NAN_MISSING, default, AS_ZERO)
        return list(zip(self.feature.tolist(), treatment.tolist(), strict=True))

    def leaves_and_masks(self) -> tuple[list[int], list[int]]:
        """Leaves from left to right, and for every node the bits of the leaves in its left subtree."""
        order: list[int] = []
        cleared = [0] * len(self.feature)

        def visit(node: int) -> None:
            if node < 0:
                order.append(~node)
                return
            before = len(order)
            visit(int(self.left[node]))
            cleared[node] = (1 << len(order)) - (1 << before)
            visit(int(self.right[node]))

        visit(0 if len(self.feature) else -1)
        return order, cleared


class _Model:
    """What of a model text matters here."""

    def __init__(self, text: str) -> None:
        head, *sections = text.split("\nTree=")
        lines = head.splitlines()
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        if "max_feature_idx" not in fields or not sections:
            raise ValueError("not a LightGBM model: it has no max_feature_idx or no tree")
        self.features = int(fields["max_feature_idx"]) + 1
        self.averaged = "average_output" in lines
        self.trees = [_Tree(dict(line.split("=", 1) for line in section.splitlines() if "=" in line)) for section in sections]
