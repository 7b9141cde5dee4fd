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

  override protected def advance(order: RowOrder, time: Int): Unit = {
    val row = order.next()
    remember(row)
    catchUp(row, time)
    shape.margins(block, row, point, margin)
    problem.loss.slope(margin, block.label(row), slope)
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
      shape.margins(block, row, start, margin)
      problem.loss.slope(margin, block.label(row), slope)
      gradients += 1
      System.arraycopy(slope, 0, record, row * outputs, outputs)
    }

  private def catchUp(row: Int, time: Int): Unit = {
    var at  = block.start(row)
    val end = block.start(row + 1)
    while (at < end) {
      val feature = block.index(at)
      if (last(feature) != time) {
        renew(feature, time)
        last(feature) = time
      }
      at += 1
    }
  }

  private def renew(feature: Int, time: Int): Unit = {
    val lag = time - last(feature)
    var at  = feature * outputs
    val end = at + outputs
    while (at < end) {
      point(at) = lagged.many(point(at), step * mean(at), lag)
      at += 1
    }
  }

  private def move(row: Int, time: Int): Unit = {
    val now   = scaleOf(row)
    val after = if (plan.solver.renews) shard.share(row) else 0.0
    var at    = block.start(row)
    val end   = block.start(row + 1)
    while (at < end) {
      val value   = block.value(at)
      val feature = block.index(at)
      val base    = feature * outputs
      var k       = 0
      while (k < outputs) {
        val here = value * change(k)
        point(base + k) = lagged.one(point(base + k), step * (mean(base + k) + now * here))
        mean(base + k) += after * here
        k += 1
      }
      last(feature) = time + 1
      at += 1
    }
    moveIntercepts(now, after)
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
