package io.headrace.ml.saga

/**
 * A row's loss as a function of its margins z (one a class for softmax, else one), convex and smooth.
 *
 * {{{
 * logistic        log(1 + exp(-yz)), y = 2 label - 1            curvature 1/4
 * softmax         log sum_k exp(z_k) - z_label                  curvature 1/2 (Boehning 1992)
 * squared hinge   max(0, 1 - yz)^2                              curvature 2
 * squared         (z - label)^2 / 2                             curvature 1
 * }}}
 *
 * The gradient by the margins is the row's "slope": all that a gradient table keeps of a row. The conjugate
 * l*(s) = sup_z sz - l(z) makes the dual objective; it is infinite where s is the slope of no margin. A dual point
 * needs slopes whose weighted sum is zero (the intercept is not penalized): `tilt` moves a slope along a direction in
 * which l* stays finite for |t| < 1, by t times what `tiltRate` adds up.
 */
sealed trait Loss extends Serializable {

  /** Margins of a row. */
  def outputs: Int

  /** The largest second derivative along any direction of the margins. */
  def curvature: Double

  def value(margin: Array[Double], label: Double): Double

  /** Write the slope into `into`. */
  def slope(margin: Array[Double], label: Double, into: Array[Double]): Unit

  def conjugate(slope: Array[Double], label: Double): Double

  /** Replace a slope by slope - (tilt's matrix) t. */
  def tilt(slope: Array[Double], label: Double, t: Array[Double]): Unit

  /** Add weight times the symmetric matrix of [[tilt]], outputs x outputs by rows, to `into` from `at` on. */
  def tiltRate(slope: Array[Double], label: Double, weight: Double, into: Array[Double], at: Int): Unit
}

/** One margin a row: what is common to the scalar losses. */
sealed trait ScalarLoss extends Loss {
  final override def outputs: Int = 1

  /** How fast the slope moves as it is tilted. */
  protected def rate(slope: Double): Double

  final override def tilt(slope: Array[Double], label: Double, t: Array[Double]): Unit =
    slope(0) -= t(0) * rate(slope(0))

  final override def tiltRate(
      slope: Array[Double],
      label: Double,
      weight: Double,
      into: Array[Double],
      at: Int
  ): Unit = into(at) += weight * rate(slope(0))
}

/** Labels 0 and 1. Its slope is probability - label, tilted by p(1 - p). */
case object LogisticLoss extends ScalarLoss {
  override def curvature: Double = 0.25

  override def value(margin: Array[Double], label: Double): Double = {
    val against = if (label > 0) -margin(0) else margin(0)
    if (against > 0) against + math.log1p(math.exp(-against)) else math.log1p(math.exp(against))
  }

  override def slope(margin: Array[Double], label: Double, into: Array[Double]): Unit =
    into(0) = if (label > 0) -sigmoid(-margin(0)) else sigmoid(margin(0))

  override def conjugate(slope: Array[Double], label: Double): Double = {
    val share = if (label > 0) -slope(0) else slope(0)
    if (share < 0 || share > 1) Double.PositiveInfinity
    else Entropy.of(share) + (if (share < 1) (1 - share) * math.log1p(-share) else 0.0)
  }

  override protected def rate(slope: Double): Double = math.abs(slope) * (1 - math.abs(slope))

  /** 1 / (1 + exp(-z)) without overflow, to full relative precision also where it is tiny. */
  def sigmoid(z: Double): Double =
    if (z >= 0) 1 / (1 + math.exp(-z))
    else {
      val small = math.exp(z)
      small / (1 + small)
    }
}

/** Labels 0 and 1. Its slope is 0 or has the sign against the label; tilted by its own size. */
case object SquaredHingeLoss extends ScalarLoss {
  override def curvature: Double = 2.0

  override def value(margin: Array[Double], label: Double): Double = {
    val short = math.max(0.0, 1 - sign(label) * margin(0))
    short * short
  }

  override def slope(margin: Array[Double], label: Double, into: Array[Double]): Unit = {
    val y = sign(label)
    into(0) = -2 * y * math.max(0.0, 1 - y * margin(0))
  }

  override def conjugate(slope: Array[Double], label: Double): Double = {
    val along = sign(label) * slope(0)
    if (along > 0) Double.PositiveInfinity else along + along * along / 4
  }

  override protected def rate(slope: Double): Double = math.abs(slope)

  private def sign(label: Double): Double = if (label > 0) 1.0 else -1.0
}

/** Labels are real numbers. */
case object SquaredLoss extends ScalarLoss {
  override def curvature: Double = 1.0

  override def value(margin: Array[Double], label: Double): Double = {
    val error = margin(0) - label
    error * error / 2
  }

  override def slope(margin: Array[Double], label: Double, into: Array[Double]): Unit = into(0) = margin(0) - label

  override def conjugate(slope: Array[Double], label: Double): Double = slope(0) * (slope(0) / 2 + label)

  override protected def rate(slope: Double): Double = 1.0
}

/** Labels 0 to classes - 1. Its slope is the probabilities minus one at the label, tilted by diag(p) - pp'. */
final case class SoftmaxLoss(classes: Int) extends Loss {
  override def outputs: Int      = classes
  override def curvature: Double = 0.5

  override def value(margin: Array[Double], label: Double): Double = {
    val most  = highest(margin)
    var total = 0.0
    var k     = 0
    while (k < classes) {
      total += math.exp(margin(k) - most)
      k += 1
    }
    math.log(total) + most - margin(label.toInt)
  }

  override def slope(margin: Array[Double], label: Double, into: Array[Double]): Unit = {
    val most  = highest(margin)
    val own   = label.toInt
    var total = 0.0
    var k     = 0
    while (k < classes) {
      into(k) = math.exp(margin(k) - most)
      total += into(k)
      k += 1
    }
    var others = 0.0
    k = 0
    while (k < classes) {
      into(k) /= total
      if (k != own) others += into(k)
      k += 1
    }
    into(own) = -others // not p - 1: that would lose the digits of a row that fits well
  }

  override def conjugate(slope: Array[Double], label: Double): Double = {
    var total  = 0.0
    var others = 0.0
    var k      = 0
    while (k < classes) {
      if (k != label.toInt) {
        if (slope(k) < 0) return Double.PositiveInfinity
        total += Entropy.of(slope(k))
        others += slope(k)
      }
      k += 1
    }
    if (others > 1 + SoftmaxLoss.Slack) Double.PositiveInfinity
    else if (others >= 1) total
    else total + (1 - others) * math.log1p(-others)
  }

  override def tilt(slope: Array[Double], label: Double, t: Array[Double]): Unit = {
    var mean = 0.0
    var k    = 0
    while (k < classes) {
      mean += t(k) * probability(slope, label, k)
      k += 1
    }
    k = 0
    while (k < classes) {
      slope(k) -= probability(slope, label, k) * (t(k) - mean)
      k += 1
    }
  }

  override def tiltRate(
      slope: Array[Double],
      label: Double,
      weight: Double,
      into: Array[Double],
      at: Int
  ): Unit = {
    var k = 0
    while (k < classes) {
      val p = weight * probability(slope, label, k)
      into(at + k * classes + k) += p
      var m = 0
      while (m < classes) {
        into(at + k * classes + m) -= p * probability(slope, label, m)
        m += 1
      }
      k += 1
    }
  }

  private def probability(slope: Array[Double], label: Double, k: Int): Double =
    if (k == label.toInt) 1 + slope(k) else slope(k)

  private def highest(margin: Array[Double]): Double = {
    var most = margin(0)
    var k    = 1
    while (k < classes) {
      if (margin(k) > most) most = margin(k)
      k += 1
    }
    most
  }
}

object SoftmaxLoss {

  /** Rounding of a sum of probabilities. */
  private val Slack = 1e-12
}

private object Entropy {

  /** p log p, 0 at 0. */
  def of(p: Double): Double = if (p > 0) p * math.log(p) else 0.0
}
