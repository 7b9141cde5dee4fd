"""A power-law graph with planted communities, features and labels: every part a pure function of (seed, index).

Node ids have `scale` bits. In the order in which they are drawn the low log2(communities) bits are the community, the
rest the place in it. An edge i draws

    community of its source: uniform; of its target: the same with probability `within`, else uniform over the others
    both places: bit by bit from the four quadrants (a, b, c, d), noisy by level (R-MAT)

so the share of edges inside communities is `within` by construction, and degrees in each community have a power law's
tail. A keyed bijection of the ids then hides both. Duplicates and self-loops are left in, as the model gives them.

    feature of node v = separation * q(community) + noise,   q orthonormal (signed cosines), noise standard normal
    label of node v   = community, or with probability `label_noise` one of the others

References: Chakrabarti, Zhan, Faloutsos, "R-MAT", SDM 2004; Seshadhri, Pinar, Kolda, "An in-depth analysis of
stochastic Kronecker graphs", J. ACM 2013 (noise by level against oscillating degrees); Graph500's generator.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError
from headrace.ingest.planted import stream_key, uniform

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other bytes."""
FORMATS = ("snap", "parquet", "npy")
SPLITS = ("train", "validation", "test")
MAX_SCALE = 40
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW32 = np.uint64(0xFFFFFFFF)
_LEVELS_A_DRAW = 4
_SPARSE_BITS = 62


@dataclass(frozen=True, kw_only=True)
class GraphModel:
    """What the graph depends on: picklable, and all that a worker needs to make any part of it.

    Args:
        seed: of everything.
        scale: log2 of the number of nodes.
        num_edges: directed edges, duplicates and self-loops included.
        quadrants: a, b, c of R-MAT; d is the rest.
        noise: the quadrants' largest shift by level.
        communities: a power of two.
        within: share of edges inside communities.
        feature_dim: columns of the features; 0 = none, else at least `communities`.
        separation: length of a community's mean feature, in standard deviations of the noise.
        label_noise: share of nodes whose label is another than their community.
        split: shares of train, validation and test nodes.
        sparse_ids: ids of 62 bits instead of 0 .. nodes-1.
    """

    seed: int
    scale: int
    num_edges: int
    quadrants: tuple[float, float, float] = (0.57, 0.19, 0.19)
    noise: float = 0.1
    communities: int = 16
    within: float = 0.8
    feature_dim: int = 32
    separation: float = 2.0
    label_noise: float = 0.05
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    sparse_ids: bool = False

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        if not 1 <= self.scale <= MAX_SCALE:
            raise UserError(f"--scale {self.scale} is not within 1 and {MAX_SCALE}", "20 makes a million nodes")
        if self.num_edges < 0:
            raise UserError("--edge_factor is negative", "give edges a node, for example 16")
        if self.communities < 1 or self.communities & (self.communities - 1) or self.communities > self.num_nodes:
            raise UserError(
                f"--communities {self.communities} is no power of two up to 2^scale", "give 1, 2, 4, 8, 16 ..."
            )
        self._check_shares()
        if self.feature_dim and self.feature_dim < self.communities:
            raise UserError(
                f"--feature_dim {self.feature_dim} is under --communities {self.communities}",
                "the communities' means are at right angles: give as many columns, or 0 for no features",
            )
        if self.communities == 1 and (self.within < 1 or self.label_noise > 0):
            raise UserError("there is one community, and edges or labels of others", "--within 1 --label_noise 0")

    def _check_shares(self) -> None:
        if min(self.quadrants) < 0 or sum(self.quadrants) > 1 + 1e-9:
            raise UserError(f"--quadrants {self.quadrants}: a, b, c are shares of at most 1 in all", "0.57,0.19,0.19")
        if self.noise < 0 or self.noise > self._noise_limit():
            raise UserError(
                f"--noise {self.noise} is not within 0 and {self._noise_limit():.3g}",
                "a shift may not make a quadrant's share negative",
            )
        for name in ("within", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)} is not within 0 and 1")
        if min(self.split) < 0 or not math.isclose(sum(self.split), 1, abs_tol=1e-9):
            raise UserError(f"--split {self.split}: the shares do not add up to 1", "for example 0.6,0.2,0.2")

    @property
    def num_nodes(self) -> int:
        """Nodes, those without an edge included."""
        return 1 << self.scale

    @property
    def community_bits(self) -> int:
        """Low bits of a drawn id."""
        return self.communities.bit_length() - 1

    def settings(self) -> dict[str, object]:
        """As JSON keeps them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def edges(self, start: int, stop: int) -> tuple[I64, I64]:
        """Sources and targets of edges start..stop-1, int64 [stop - start] each."""
        index = np.arange(start, stop, dtype=np.uint64)
        source, target = self._draw_edges(index)
        return self.ids(self._scramble.forward(source)), self.ids(self._scramble.forward(target))

    def drawn_edges(self, start: int, stop: int) -> tuple[U64, U64]:
        """The same before ids are hidden: the low `community_bits` are the communities."""
        return self._draw_edges(np.arange(start, stop, dtype=np.uint64))

    def ids(self, nodes: U64) -> I64:
        """The ids that are written for nodes 0 .. num_nodes-1: themselves, or 62-bit numbers."""
        return (self._sparse.forward(nodes) if self.sparse_ids else nodes).astype(np.int64)

    def communities_of(self, start: int, stop: int) -> I64:
        """Communities of nodes start..stop-1 (of the dense numbering)."""
        drawn = self._scramble.backward(np.arange(start, stop, dtype=np.uint64))
        return (drawn & np.uint64(self.communities - 1)).astype(np.int64)

    def labels(self, start: int, stop: int) -> I64:
        """Labels of nodes start..stop-1: int64, 0 .. communities-1."""
        nodes = np.arange(start, stop, dtype=np.uint64)
        community = self.communities_of(start, stop)
        wrong = uniform(self.seed, -1, "graph label is wrong", nodes) < self.label_noise
        other = (uniform(self.seed, -1, "graph other label", nodes) * (self.communities - 1)).astype(np.int64)
        return np.where(wrong, other + (other >= community), community)

    def splits(self, start: int, stop: int) -> I64:
        """Index in SPLITS of nodes start..stop-1."""
        draw = uniform(self.seed, -1, "graph split", np.arange(start, stop, dtype=np.uint64))
        return np.searchsorted(np.cumsum(self.split)[:2], draw, side="right").astype(np.int64)

    def features(self, start: int, stop: int) -> F32:
        """Features of nodes start..stop-1: float32 [stop - start, feature_dim]."""
        rows, width = stop - start, self.feature_dim
        cells = np.arange(start * width, stop * width, dtype=np.uint64)
        noise = normal(stream_key(self.seed, -1, "graph features"), cells).reshape(rows, width)
        return np.asarray(self.centroids[self.communities_of(start, stop)] + noise, np.float32)

    @cached_property
    def centroids(self) -> F64:
        """Mean features by community: float64 [communities, feature_dim], at right angles, `separation` long."""
        j = np.arange(self.feature_dim)
        k = np.arange(self.communities)[:, None]
        rows = np.cos(np.pi * (j + 0.5) * k / max(1, self.feature_dim))
        sign = np.where(uniform(self.seed, -1, "graph signs", j.astype(np.uint64)) < 0.5, -1.0, 1.0)
        length = np.sqrt(np.where(k == 0, 1, 2) / max(1, self.feature_dim))
        return np.asarray(self.separation * length * rows * sign)

    def _draw_edges(self, index: U64) -> tuple[U64, U64]:
        source, target = self._communities(index)
        done = self.community_bits
        for number, table in enumerate(self._tables):
            key = np.uint64(stream_key(self.seed, -1, f"graph quadrants {number}"))
            cell = table.draw(splitmix64(key + index * _GOLDEN))
            source |= (cell >> np.uint64(table.levels)) << np.uint64(done)
            target |= (cell & np.uint64((1 << table.levels) - 1)) << np.uint64(done)
            done += table.levels
        return source, target

    def _communities(self, index: U64) -> tuple[U64, U64]:
        """Communities of both ends; the second draw picks among the others where the edge leaves."""
        if self.communities == 1:
            return np.zeros_like(index), np.zeros_like(index)
        bits = splitmix64(np.uint64(stream_key(self.seed, -1, "graph communities")) + index * _GOLDEN)
        source = bits >> np.uint64(64 - self.community_bits)
        leaves = (bits & _LOW32) >= np.uint64(round(self.within * 2**32))
        pick = splitmix64(np.uint64(stream_key(self.seed, -1, "graph other community")) + index * _GOLDEN)
        step = np.uint64(1) + ((pick >> np.uint64(32)) * np.uint64(self.communities - 1) >> np.uint64(32))
        target = (source + step * leaves) & np.uint64(self.communities - 1)
        return source, target

    @cached_property
    def _tables(self) -> tuple[QuadrantTable, ...]:
        """Levels from the lowest bit up, a few at a time."""
        shares = self.level_quadrants
        return tuple(QuadrantTable.of(shares[i : i + _LEVELS_A_DRAW]) for i in range(0, len(shares), _LEVELS_A_DRAW))

    @cached_property
    def level_quadrants(self) -> F64:
        """Shares [levels, 4] of (0,0), (0,1), (1,0), (1,1) of each bit above the community's, lowest first."""
        a, b, c = self.quadrants
        d = max(0.0, 1.0 - a - b - c)
        levels = self.scale - self.community_bits
        mu = self.noise * (2 * uniform(self.seed, -1, "graph levels", np.arange(levels, dtype=np.uint64)) - 1)
        turn = 2 * mu / (a + d) if a + d else np.zeros(levels)
        return np.stack([a - a * turn, b + mu, c + mu, d - d * turn], axis=1)

    def _noise_limit(self) -> float:
        _, b, c = self.quadrants
        return min(max(0.0, 1.0 - b - c) / 2, b, c)

    @cached_property
    def _scramble(self) -> Scramble:
        return Scramble(stream_key(self.seed, -1, "graph ids"), self.scale)

    @cached_property
    def _sparse(self) -> Scramble:
        return Scramble(stream_key(self.seed, -1, "graph sparse ids"), _SPARSE_BITS)


@dataclass(frozen=True)
class QuadrantTable:
    """Some levels of R-MAT at once, by Walker's alias method: one 64-bit number makes one draw.

    A cell is (source bits << levels) | target bits.

    Attributes:
        threshold: uint64 [4^levels], of 2^32: below it the cell itself is drawn, else its alias.
        alias: uint64 [4^levels].
    """

    levels: int
    threshold: U64
    alias: U64 = field(repr=False)

    @classmethod
    def of(cls, quadrants: F64) -> QuadrantTable:
        """From shares [levels, 4], lowest bit first."""
        levels = len(quadrants)
        cell = np.arange(4**levels)
        share = np.ones(4**levels)
        for level in range(levels):
            source, target = cell >> (levels + level) & 1, cell >> level & 1
            share *= quadrants[level][2 * source + target]
        threshold, alias = _alias(share / share.sum())
        return cls(levels, threshold, alias)

    def draw(self, bits: U64) -> U64:
        """Cells [n] from random words [n]: the high bits choose a column, the low 32 between it and its alias."""
        column = bits >> np.uint64(64 - 2 * self.levels)
        return np.where((bits & _LOW32) < self.threshold[column], column, self.alias[column])


def _alias(share: F64) -> tuple[U64, U64]:
    """Vose's tables of a distribution whose size is a power of two."""
    size = len(share)
    height, alias = share * size, np.arange(size, dtype=np.uint64)
    small = [i for i in range(size) if height[i] < 1]
    large = [i for i in range(size) if height[i] >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        alias[low] = high
        height[high] -= 1.0 - height[low]
        if height[high] < 1:
            small.append(large.pop())
    height[[*small, *large]] = 1.0
    return np.minimum(np.round(height * 2.0**32), 2.0**32).astype(np.uint64), alias


class Scramble:
    """A keyed bijection of the numbers under 2^bits: rounds of multiply, add and xor-shift, each of them invertible."""

    def __init__(self, key: int, bits: int) -> None:
        self.bits, self._mask = bits, np.uint64((1 << bits) - 1)
        words = splitmix64(np.arange(6, dtype=np.uint64) + np.uint64(key))
        self._factors = [int(word) | 1 for word in words[:3]]
        self._terms = words[3:]
        self._shift = np.uint64((bits + 1) // 2)

    def forward(self, x: U64) -> U64:
        """uint64 in, uint64 out, both under 2^bits."""
        for factor, term in zip(self._factors, self._terms, strict=True):
            x = (x * np.uint64(factor) + term) & self._mask
            x = x ^ (x >> self._shift)
        return x

    def backward(self, x: U64) -> U64:
        """The inverse: a shift of half the bits or more undoes itself."""
        for factor, term in zip(reversed(self._factors), reversed(self._terms), strict=True):
            x = x ^ (x >> self._shift)
            x = ((x - term) * np.uint64(pow(factor, -1, 1 << 64))) & self._mask
        return x


def normal(key: int, cells: U64) -> F64:
    """Standard normal numbers [n], a pure function of (key, cell): by Box and Muller, 32 bits a draw."""
    bits = splitmix64(np.uint64(key) + cells * _GOLDEN)
    u = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    v = (bits & _LOW32).astype(np.float64) * 2.0**-32
    return np.asarray(np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v))


def truth(model: GraphModel) -> dict[str, float | None]:
    """What is known of the graph: accuracies of the best guesses of a label.

    Features alone: means at right angles and equal priors, so the best guess is the nearest mean, right with
    probability  integral of phi(x) Phi(x + separation)^(communities - 1) dx  (here by Simpson's rule to 1e-10).
    """
    classes, wrong = model.communities, model.label_noise
    other = wrong / (classes - 1) if classes > 1 else 0.0
    right = nearest_mean_accuracy(model.separation, classes) if model.feature_dim else None
    return {
        "within_share": model.within,
        "label_accuracy_of_community": 1.0 - wrong,
        "community_accuracy_of_features": right,
        "label_accuracy_of_features": None if right is None else right * (1.0 - wrong) + (1.0 - right) * other,
    }


def nearest_mean_accuracy(separation: float, classes: int) -> float:
    """Of the best classifier for `classes` unit normals with means at right angles, `separation` long."""
    x = np.linspace(-9.0, 9.0, 4001)
    cdf = np.array([0.5 * math.erfc(-(value + separation) / math.sqrt(2.0)) for value in x])
    height = np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * cdf ** (classes - 1)
    weight = np.full(len(x), 2.0)
    weight[1::2], weight[0], weight[-1] = 4.0, 1.0, 1.0
    return float((weight * height).sum() * (x[1] - x[0]) / 3)
