package io.headrace.ml.saga

/**
 * A pass of sarah: the estimate is the one before plus a row's change between the last two points.
 *
 * The first step goes by the full gradient. A coordinate that no row touches has a constant estimate, so that its last
 * two values follow from one lag; `before` keeps the value that precedes `point`.
 */
final class RecursivePass(
    problem: Problem,
    shard: Shard,
    plan: PassPlan,
    start: Array[Double],
    gradient: Array[Double],
    table: Array[Double]
) extends LocalPass(problem, shard, plan, start, gradient, table) {
  private val before       = start.clone
  private val marginBefore = new Array[Double](outputs)

  override protected def begin(): Int = {
    gradients += 1
    stepIntercepts()
    1
  }

  override protected def advance(row: Int, time: Int): Unit = {
    catchUp(row, time)
    slopeAt(row, before, marginBefore, change)
    slopeAt(row, point, margin, slope)
    gradients += 2
    search(row, time)
    var k = 0
    while (k < outputs) {
      change(k) = slope(k) - change(k)
      k += 1
    }
    move(row, time)
  }

  private def catchUp(row: Int, time: Int): Unit = {
    var at  = block.start(row)
    val end = block.start(row + 1)
    while (at < end) {
      renew(block.index(at), time)
      at += 1
    }
  }

  /** The feature's last two values at `time` > 0. */
  private def renew(feature: Int, time: Int): Unit =
    if (last(feature) != time) {
      val lag  = time - 1 - last(feature)
      val prox = proxOf(feature)
      var at   = feature * outputs
      val end  = at + outputs
      while (at < end) {
        val drift = step * mean(at)
        before(at) = if (lag == 0) point(at) else prox.many(point(at), drift, lag)
        point(at) = prox.one(before(at), drift)
        at += 1
      }
      last(feature) = time
    }

  private def move(row: Int, time: Int): Unit = {
    val now = scaleOf(row)
    var at  = block.start(row)
    val end = block.start(row + 1)
    while (at < end) {
      val feature = block.index(at)
      val base    = feature * outputs
      val prox    = proxOf(feature)
      var k       = 0
      while (k < outputs) {
        mean(base + k) += now * block.value(at) * change(k)
        before(base + k) = point(base + k)
        point(base + k) = prox.one(point(base + k), step * mean(base + k))
        k += 1
      }
      last(feature) = time + 1
      at += 1
    }
    var k = 0
    while (shape.intercept && k < outputs) {
      mean(shape.penalized + k) += now * change(k)
      k += 1
    }
    stepIntercepts()
  }

  private def stepIntercepts(): Unit = {
    var at = shape.penalized
    while (at < shape.length) {
      before(at) = point(at)
      interceptStep(at, mean(at))
      at += 1
    }
  }

  override protected def settle(time: Int): Unit =
    if (time > 0) {
      var feature = 0
      while (feature < shape.features) {
        renew(feature, time)
        feature += 1
      }
    }
}
