"""Connected components of a graph of any size on Spark; a component is named by its smallest node.

    contract     every task replaces its edges by a forest over their nodes (features/contraction.py)
    large star   every node u ties its larger neighbours to m(u), the smallest of u and its neighbours
    small star   every node u ties itself and its smaller neighbours to the smallest of them
    finish       once the edges that are left fit one task, that task contracts them

Large and small stars alternate until every node hangs on one node that hangs on none. Reference: Kiveris, Lattanzi,
Mirrokni, Rastogi, Vassilvitskii, "Connected Components in MapReduce and Beyond", SoCC 2014 (rounds: O(log^2 n) proved,
O(log n) seen). Beyond the paper: contraction before and finishing after, so that a graph whose forest fits one task
needs no round; and nothing is ever collected by node, so a hub with millions of edges costs what its edges cost.

Proof. No step ties nodes of different components: each writes pairs from within one star or one tree. That every edge
has both ends in one component is checked on each run: by the task that contracts an edge, on that edge; and for the
forests, on all their rows, against the result, by a count that must be 0. So is that each component bears the name of
a node of its own which is not larger than any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.catalog.scratch import kept
from headrace.features.contraction import CHUNK, contractor

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

MAX_HUBS = 10_000


class NotConvergedError(RuntimeError):
    """The components are not known to be right: nothing was returned."""


@dataclass(frozen=True)
class Options:
    """How components are computed; none of it changes the result.

    Args:
        chunk: edges that a task contracts at a time.
        finish: contracted edges that one task may finish; 0: stars until the end.
        hub_edges: a node with more edges (and more than a ten-thousandth of all) is joined by broadcast.
        max_rounds: of large and small star, before giving up.
    """

    chunk: int = CHUNK
    finish: int = 4 * CHUNK
    hub_edges: int = 100_000
    max_rounds: int = 60


def components(edges: DataFrame, work: str, options: Options | None = None) -> DataFrame:
    """The component of every node that occurs in an edge.

    Args:
        edges: src bigint, dst bigint, without nulls; direction does not matter, duplicates and self-loops are allowed,
            ids may be any 64-bit numbers. Read once.
        work: an empty place that all executors can write to (`catalog.scratch`), for what lies between the rounds.
            The result is read from there: keep it until that is used.
        options: see Options.

    Returns:
        node bigint, component bigint (the smallest node of the component); one row a node.

    Raises:
        NotConvergedError: too many rounds, or the proof found a difference; no wrong result is returned.
    """
    options = options or Options()
    stages = _Stages(work)
    rows = edges.select("src", "dst").mapInArrow(contractor(options.chunk), _SCHEMA)
    forest = stages.keep(rows)
    tree = stages.keep(forest.where("node <> component").distinct())
    tree = _until_stars(tree, stages, options)
    named = tree.unionByName(forest.selectExpr("node", "node AS component"))
    result = stages.keep(named.groupBy("node").agg(_min("component").alias("component")), last=True)
    _prove(forest, result, options)
    return result


_SCHEMA = "node bigint, component bigint"


class _Stages:
    """Results on storage: the plan of one round does not contain the rounds before, and a lost executor loses none."""

    def __init__(self, work: str) -> None:
        self.work, self.count = work, 0

    def keep(self, rows: DataFrame, last: bool = False) -> DataFrame:
        place = f"{self.work}/{'components' if last else f'step-{self.count:03d}'}"
        self.count += 1
        return kept(rows, place)


def _until_stars(tree: DataFrame, stages: _Stages, options: Options) -> DataFrame:
    """`tree` (node, component < node) as stars: every node on one node, which is on none."""
    for round_ in range(options.max_rounds):
        rows = tree.count()
        if rows <= options.finish:
            return stages.keep(_finished(tree, options))
        if round_ and not _loose(tree):
            return tree
        tree = stages.keep(_large_star(tree, rows, options))
        tree = stages.keep(_small_star(tree, tree.count(), options))
    if not _loose(tree):
        return tree
    raise NotConvergedError(
        f"{options.max_rounds} rounds of large and small star leave {_loose(tree):,} nodes of {tree.count():,} edges "
        "between two components; graphs need about log2(nodes) rounds: allow more, or report it"
    )


def _finished(tree: DataFrame, options: Options) -> DataFrame:
    """All of it contracted by one task."""
    return tree.repartition(1).mapInArrow(contractor(options.chunk, whole=True), _SCHEMA).where("node <> component")


def _loose(tree: DataFrame) -> int:
    """Nodes that hang on two nodes, or hang on one and have others hang on them: none are left in a set of stars."""
    from pyspark.sql import functions as F

    ups = tree.select("node", F.lit(1).alias("up"), F.lit(0).alias("down"))
    downs = tree.select(F.col("component").alias("node"), F.lit(0).alias("up"), F.lit(1).alias("down"))
    degrees = ups.unionByName(downs).groupBy("node").agg(F.sum("up").alias("up"), F.sum("down").alias("down"))
    return degrees.where("up > 1 OR (up > 0 AND down > 0)").count()


def _large_star(tree: DataFrame, rows: int, options: Options) -> DataFrame:
    """(v, m(u)) for every edge of a node u and a larger v."""
    from pyspark.sql import functions as F

    swapped = tree.selectExpr("component AS node", "node AS component")
    least = tree.unionByName(swapped).groupBy("node").agg(_min("component").alias("least"))
    least = least.select(F.col("node").alias("u"), F.least("node", "least").alias("least"))
    edges = tree.select(F.col("node").alias("v"), F.col("component").alias("u"))
    return _looked_up(edges, least, rows, options).selectExpr("v AS node", "least AS component").distinct()


def _small_star(tree: DataFrame, rows: int, options: Options) -> DataFrame:
    """(v, m) for every node u and its smaller neighbours v, and (u, m), with m the least of these."""
    least = tree.groupBy("node").agg(_min("component").alias("least")).withColumnRenamed("node", "u")
    edges = tree.selectExpr("node AS u", "component AS v")
    tied = _looked_up(edges, least, rows, options).where("v <> least").selectExpr("v AS node", "least AS component")
    return tied.unionByName(least.selectExpr("u AS node", "least AS component")).distinct()


def _looked_up(rows: DataFrame, table: DataFrame, count: int, options: Options) -> DataFrame:
    """Join `table` (one row a `u`) to rows by `u`; a u of very many rows goes by broadcast, the others by shuffle.

    At most MAX_HUBS values have so many, whatever the graph: the broadcast is small.
    """
    from pyspark.sql import functions as F

    limit = max(options.hub_edges, count // MAX_HUBS)
    hubs = [] if count <= limit else rows.groupBy("u").count().where(F.col("count") > limit).select("u").collect()
    if not hubs:
        return rows.join(table, "u")
    heavy = F.broadcast(rows.sparkSession.createDataFrame(hubs, "u bigint"))
    of_hubs = F.broadcast(table.join(heavy, "u"))
    return rows.join(of_hubs, "u").unionByName(rows.join(heavy, "u", "left_anti").join(table, "u"))


def _prove(forest: DataFrame, result: DataFrame, options: Options) -> None:
    """Count what contradicts the result.

    Raises:
        NotConvergedError: anything does.
    """
    from pyspark.sql import functions as F

    rows = forest.count()
    wanted = forest.selectExpr("node", "component AS u")
    ends = _looked_up(wanted, result.selectExpr("node AS u", "component AS of_root"), rows, options)
    joined = ends.join(result, "node")
    agree, checked = joined.agg(F.count_if(F.expr("component = of_root")), F.count(F.lit(1))).collect()[0]
    split = rows - agree
    names = result.agg(
        F.countDistinct("component").alias("names"),
        F.count_if(F.col("node") == F.col("component")).alias("own"),
        F.count_if(F.col("component") > F.col("node")).alias("larger"),
    ).collect()[0]
    if split or names["names"] != names["own"] or names["larger"]:
        raise NotConvergedError(
            f"of {rows:,} contracted edges {split:,} have ends in two components ({checked:,} had both ends known); "
            f"{names['names']:,} names of components, {names['own']:,} are nodes of their own component, "
            f"{names['larger']:,} nodes are smaller than their component's name"
        )


def _min(name: str) -> Column:
    from pyspark.sql import functions as F

    return F.min(name)
