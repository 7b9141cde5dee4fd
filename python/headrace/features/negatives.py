"""Negative triples of a knowledge graph, a pure function of (seed, epoch, triple, j): the same on any worker.

    corrupt the head of (h, r, t) with probability  tph(r) / (tph(r) + hpt(r)),  else the tail       ("bernoulli")
    by an entity drawn uniformly, or in proportion to degree ^ 0.75

tph: mean number of tails of a head of r; hpt: of heads of a tail. So of a one-to-many relation the head is replaced
more often, which hits a true triple less often. Candidates that make a known triple are drawn again (`Known`), exactly:
after `ATTEMPTS` draws the entities that are left are listed; where none is, the negative is NONE.

References: Wang, Zhang, Feng, Chen, "Knowledge Graph Embedding by Translating on Hyperplanes", AAAI 2014; Mikolov et
al., "Distributed Representations of Words and Phrases", NIPS 2013 (the power 0.75).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError
from headrace.features.sampling import NONE, Draw

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

SIDES = ("bernoulli", "uniform", "head", "tail")
ENTITIES = ("uniform", "degree")
ATTEMPTS = 16
POWER = 0.75
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Triples:
    """Triples as three arrays int64 [n] of dense ids."""

    head: I64
    relation: I64
    tail: I64

    def __len__(self) -> int:
        return len(self.head)

    def keys(self, options: Options) -> U64:
        """Each triple as one number, (head R + relation) N + tail: another for every triple of the graph."""
        entities, relations = np.uint64(options.num_entities), np.uint64(options.num_relations)
        rows = self.head.astype(np.uint64) * relations + self.relation.astype(np.uint64)
        return rows * entities + self.tail.astype(np.uint64)


@dataclass(frozen=True)
class Options:
    """How negatives are drawn.

    Args:
        num_entities: heads and tails are below.
        num_relations: relations are below.
        per_triple: negatives of each triple.
        sides: bernoulli, uniform (either end with probability 1/2), head or tail.
        entities: uniform, or degree (in proportion to degree ^ 0.75 in the triples given).
        filtered: draw again what is a known triple.
    """

    num_entities: int
    num_relations: int
    per_triple: int = 1
    sides: str = "bernoulli"
    entities: str = "uniform"
    filtered: bool = True

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        for name, allowed in (("sides", SIDES), ("entities", ENTITIES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.per_triple < 1 or self.num_entities < 1 or self.num_relations < 1:
            raise UserError("negatives a triple, entities and relations must be 1 or more", "check the graph's counts")
        if self.num_entities**2 * self.num_relations >= 1 << 64:
            raise UserError(
                f"{self.num_entities:,} entities squared times {self.num_relations:,} relations pass 2^64",
                "triples are looked up as one 64-bit number: split the graph by relation",
            )


class Known:
    """True triples, looked up by binary search: 8 bytes each.

    Args:
        triples: all that must not be drawn; those of validation and test too where those are judged on.
        options: the sizes.
    """

    def __init__(self, triples: Triples, options: Options) -> None:
        _check_ids(triples, options)
        self._options = options
        self._keys = np.unique(triples.keys(options))

    @classmethod
    def of_keys(cls, keys: U64, options: Options) -> Known:
        """From `Triples.keys`, ascending and distinct: what another process has sorted."""
        known = cls(Triples(*[np.empty(0, np.int64)] * 3), options)
        known._keys = keys
        return known

    @property
    def keys(self) -> U64:
        """Ascending, each once."""
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, triple: tuple[int, int, int]) -> bool:
        h, r, t = (np.array([x], np.int64) for x in triple)
        return bool(self.holds(h, r, t)[0])

    def holds(self, head: I64, relation: I64, tail: I64) -> npt.NDArray[np.bool_]:
        """Whether each triple is known: bool, of the same shape."""
        wanted = Triples(head, relation, tail).keys(self._options)
        if not len(self._keys):
            return np.zeros(wanted.shape, np.bool_)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.asarray(self._keys[place] == wanted)


@dataclass(frozen=True)
class Negatives:
    """Draws negatives; made once from the training triples, used for any of them in any epoch.

    Attributes:
        options: see Options.
        head_share: float64 [relations], probability to corrupt the head.
        cumulative: float64 [entities], distribution function of the entities; None where they are as likely.
        known: triples not to draw, None where not filtered.
    """

    options: Options
    head_share: F64
    cumulative: F64 | None
    known: Known | None

    @classmethod
    def of(cls, triples: Triples, options: Options, known: Known | None = None) -> Negatives:
        """Count the training triples.

        Args:
            triples: of training.
            options: see Options.
            known: triples not to draw; default: the training triples.

        Raises:
            UserError: settings that make no sense, ids out of range.
        """
        options.check()
        _check_ids(triples, options)
        known = (known or Known(triples, options)) if options.filtered else None
        return cls(options, _head_share(triples, options), _cumulative(triples, options), known)

    def draw(self, triples: Triples, seed: int, epoch: int) -> Triples:
        """The negatives of each triple.

        Args:
            triples: n of them.
            seed: of the run.
            epoch: other negatives in each.

        Returns:
            [n, per_triple] heads, relations and tails: one end replaced, NONE there where nothing is left to draw.
        """
        shape = (len(triples), self.options.per_triple)
        (head, relation, tail), words, at_head = self._begin(triples, seed, epoch)
        left = np.arange(len(words))
        for attempt in range(1, ATTEMPTS + 1):
            drawn = self._entities(_uniform(words[left], attempt))
            head[left] = np.where(at_head[left], drawn, head[left])
            tail[left] = np.where(at_head[left], tail[left], drawn)
            if self.known is None:
                break
            left = left[self.known.holds(head[left], relation[left], tail[left])]
            if not len(left):
                break
        else:
            self._draw_exactly(left, (head, relation, tail), at_head, words)
        return Triples(head.reshape(shape), relation.reshape(shape), tail.reshape(shape))

    def at_head(self, triples: Triples, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
        """Which end `draw` replaces: bool [n, per_triple], true for the head."""
        return self._begin(triples, seed, epoch)[2].reshape(len(triples), self.options.per_triple)

    def _begin(
        self, triples: Triples, seed: int, epoch: int
    ) -> tuple[tuple[I64, I64, I64], U64, npt.NDArray[np.bool_]]:
        """Each triple as often as it has negatives, the words of each, and which end is replaced."""
        k = self.options.per_triple
        head, relation, tail = (np.repeat(x, k) for x in (triples.head, triples.relation, triples.tail))
        words = _words(head, relation, tail, np.tile(np.arange(k), len(triples)), Draw(seed, epoch))
        return (head, relation, tail), words, _uniform(words, 0) < self.head_share[relation]

    def _entities(self, u: F64) -> I64:
        if self.cumulative is None:
            return (u * self.options.num_entities).astype(np.int64)
        return np.searchsorted(self.cumulative, u, side="right").astype(np.int64)

    def _draw_exactly(
        self, left: I64, triples: tuple[I64, I64, I64], at_head: npt.NDArray[np.bool_], words: U64
    ) -> None:
        """Draw among the entities that make no known triple, listed; few triples come here."""
        head, relation, tail = triples
        assert self.known is not None
        every = np.arange(self.options.num_entities)
        share = np.ones(len(every)) if self.cumulative is None else np.diff(self.cumulative, prepend=0.0)
        for i in left.tolist():
            ends = (every, np.full_like(every, tail[i])) if at_head[i] else (np.full_like(every, head[i]), every)
            free = every[~self.known.holds(ends[0], np.full_like(every, relation[i]), ends[1]) & (share > 0)]
            u = float(_uniform(words[i : i + 1], ATTEMPTS + 1)[0])
            total = np.cumsum(share[free])
            drawn = (
                free[min(int(np.searchsorted(total, u * total[-1], side="right")), len(free) - 1)]
                if len(free)
                else NONE
            )
            (head if at_head[i] else tail)[i] = drawn


def _check_ids(triples: Triples, options: Options) -> None:
    for name, ids, limit in (
        ("head", triples.head, options.num_entities),
        ("tail", triples.tail, options.num_entities),
        ("relation", triples.relation, options.num_relations),
    ):
        if len(ids) and not (ids.min() >= 0 and ids.max() < limit):
            raise UserError(f"a {name} is not within 0 and {limit - 1:,}", "give triples of dense ids")


def _head_share(triples: Triples, options: Options) -> F64:
    """Probability [relations] to corrupt the head."""
    if options.sides != "bernoulli":
        return np.full(options.num_relations, {"head": 1.0, "tail": 0.0, "uniform": 0.5}[options.sides])
    relations, entities = options.num_relations, options.num_entities
    pairs = np.bincount(triples.relation, minlength=relations)
    heads = np.bincount(np.unique(triples.relation * entities + triples.head) // entities, minlength=relations)
    tails = np.bincount(np.unique(triples.relation * entities + triples.tail) // entities, minlength=relations)
    tph, hpt = pairs / np.maximum(heads, 1), pairs / np.maximum(tails, 1)
    total = tph + hpt
    return np.where(total > 0, tph / np.where(total > 0, total, 1.0), 0.5)


def _cumulative(triples: Triples, options: Options) -> F64 | None:
    if options.entities == "uniform":
        return None
    ends = np.concatenate([triples.head, triples.tail])
    if not len(ends):
        raise UserError("there is no triple to take degrees from", "--entities uniform")
    weight = np.cumsum(np.bincount(ends, minlength=options.num_entities).astype(np.float64) ** POWER)
    return np.asarray(weight / weight[-1])


def _words(head: I64, relation: I64, tail: I64, number: I64, draw: Draw) -> U64:
    words = splitmix64(head.astype(np.uint64) + draw.key())
    for part in (relation, tail, number):
        words = splitmix64(words ^ part.astype(np.uint64))
    return words


def _uniform(words: U64, slot: int) -> F64:
    """Numbers in [0, 1) [n]."""
    bits = splitmix64(words + np.uint64(slot * _GOLDEN % (1 << 64)))
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
