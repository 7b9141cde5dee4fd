package io.headrace.ml.saga

/** A pass of sag, saga, svrg or scsg: gradients are corrected by a table of slopes, outputs numbers a row. */
final class TablePass(
    problem: Problem,
    shard: Shard,
    plan: PassPlan,
    start: Array[Double],
    gradient: Array[Double],
    table: Array[Double]
) extends LocalPass(problem, shard, plan, start, gradient, table) {

  override protected def advance(row: Int, time: Int): Unit = {
    remember(row)
    catchUp(row, time)
    slopeAt(row, point, margin, slope)
    gradients += 1
    search(row, time)
    var k = 0
    while (k < outputs) {
      change(k) = slope(k) - record(row * outputs + k)
      if (plan.solver.renews) record(row * outputs + k) = slope(k)
      k += 1
    }
    move(row, time)
  }

  /** The row's slope at the start, where its table has none. */
  private def remember(row: Int): Unit =
    if (record(row * outputs).isNaN) {
      slopeAt(row, start, margin, slope)
      gradients += 1
      System.arraycopy(slope, 0, record, row * outputs, outputs)
    }

  private def catchUp(row: Int, time: Int): Unit = {
    val index = block.index
    var at    = block.start(row)
    val end   = block.start(row + 1)
    while (at < end) {
      val feature = index(at)
      if (last(feature) != time) {
        renew(feature, time)
        last(feature) = time
      }
      at += 1
    }
  }

  private def renew(feature: Int, time: Int): Unit = {
    val lag  = time - last(feature)
    val prox = proxOf(feature)
    if (outputs == 1) renewOne(feature, prox, lag)
    else {
      var at  = feature * outputs
      val end = at + outputs
      while (at < end) {
        renewOne(at, prox, lag)
        at += 1
      }
    }
  }

  private def renewOne(at: Int, prox: LaggedProx, lag: Int): Unit =
    point(at) = prox.many(point(at), step * mean(at), lag)

  private def move(row: Int, time: Int): Unit = {
    val index  = block.index
    val values = block.value
    val now    = scaleOf(row)
    val after  = if (plan.solver.renews) shard.share(row) else 0.0
    var at     = block.start(row)
    val end    = block.start(row + 1)
    while (at < end) {
      val feature = index(at)
      val prox    = proxOf(feature)
      if (outputs == 1) moveOne(feature, prox, values(at) * change(0), now, after)
      else {
        val base = feature * outputs
        var k    = 0
        while (k < outputs) {
          moveOne(base + k, prox, values(at) * change(k), now, after)
          k += 1
        }
      }
      last(feature) = time + 1
      at += 1
    }
    moveIntercepts(now, after)
  }

  private def moveOne(at: Int, prox: LaggedProx, change: Double, now: Double, after: Double): Unit = {
    point(at) = prox.one(point(at), step * (mean(at) + now * change))
    mean(at) += after * change
  }

  private def moveIntercepts(now: Double, after: Double): Unit =
    if (shape.intercept) {
      var k = 0
      while (k < outputs) {
        val at = shape.penalized + k
        interceptStep(at, mean(at) + now * change(k))
        mean(at) += after * change(k)
        k += 1
      }
    }

  override protected def settle(time: Int): Unit = {
    var feature = 0
    while (feature < shape.features) {
      if (last(feature) != time) {
        renew(feature, time)
        last(feature) = time
      }
      feature += 1
    }
  }
}
