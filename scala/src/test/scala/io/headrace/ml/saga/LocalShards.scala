package io.headrace.ml.saga

/** Partitions in this process, one after another: what [[Rounds]] do, without Spark. */
final class LocalShards(blocks: Seq[CsrBlock], override val problem: Problem) extends Shards {
  private val shape  = problem.shape
  private val shards = blocks.zipWithIndex.map { case (block, at) => Shard.of(at, block, shape) }
  private val weight = blocks.map(_.weightSum).sum

  private val whole = Whole(weight, blocks.map(_.secondMoments(shape.features)).reduce(Anchor.add))

  override def rows: Long       = blocks.map(_.rows.toLong).sum
  override def size: Int        = blocks.size
  override def norm: Double     = shards.map(shard => shard.norm * shard.block.weightSum / weight).sum
  override def traffic: Traffic = Traffic(0, 0)

  override def evaluate(point: Array[Double], batch: Batch): Anchor = {
    val found = blocks.zipWithIndex.map { case (block, at) =>
      Evaluation.of(problem, block, point, batch.of(at, block.rows))
    }
    val sums =
      blocks.zip(found).map { case (block, one) => Anchor.packed(problem.shape, block, one) }.reduce(Anchor.add)
    Anchor.of(
      problem.shape,
      point,
      sums,
      new Anchor.Held {
        override def pass(plan: PassPlan, gradient: Array[Double], draw: Draw): Array[Double] =
          shards.indices
            .map { at =>
              val end = LocalPass.of(problem, shards(at), plan, point, gradient, found(at).table).drawn(draw)
              Anchor.packed(problem.shape, shards(at), point, end, whole)
            }
            .reduce(Anchor.add)

        override def dual(t: Array[Double], scale: Double): Array[Double] =
          shards.indices
            .map(at => Evaluation.dual(problem, blocks(at), found(at).table, t, scale))
            .reduce(Anchor.add)
            .map(_ / weight)

        override def release(): Unit = ()
      }
    )
  }
}
