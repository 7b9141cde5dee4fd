package io.headrace.ml.saga

/**
 * Proximal steps on one coordinate whose gradient stays the same, many at once: what sparse rows need.
 *
 * One step is x <- soft(x - c, t) / (1 + delta) with the drift c = step * gradient, t = step * l1, delta = step * l2.
 * It is a monotone map of a line, so its iterates are monotone, and affine on each of three pieces: x > c + t,
 * x < c - t, and between them, where it is 0. On the right piece, with q = c + t, k steps give
 *
 * {{{
 * x_k = x / (1 + delta)^k - q s_k,    s_k = sum_{i=1..k} (1 + delta)^-i = (1 - (1 + delta)^-k) / delta
 * }}}
 *
 * If q <= 0 they never leave it. Else they descend, and leave with the first k for which x_k <= q, that is
 * (1 + delta)^(k+1) >= 1 + x delta / q; there x_k is in (0, q], one step more brings 0 or a negative number, and what
 * is on the left piece then stays on it, as c > t. The left piece mirrors the right one. No product of factors is kept
 * along a pass: nothing overflows or underflows however long it is. Powers and sums of short lags come from a table.
 */
final class LaggedProx(val step: Double, l1: Double, l2: Double) {
  private val threshold = step * l1
  private val delta     = step * l2
  private val rate      = math.log1p(delta)
  private val shrink    = 1 / (1 + delta)
  private val length    = if (delta > 0) LaggedProx.Tabled else 0
  private val tabled    = new Array[Double](2 * length) // power and sum of a lag side by side
  for (k <- 0 until length) {
    val less = math.expm1(-k * rate)
    tabled(2 * k) = 1 + less
    tabled(2 * k + 1) = -less / delta
  }

  /** One step. */
  def one(x: Double, drift: Double): Double = {
    val moved = x - drift
    if (threshold == 0) moved * shrink // a branch on a sign, which nothing foretells, takes as long as the step
    else if (moved > threshold) (moved - threshold) * shrink
    else if (moved < -threshold) (moved + threshold) * shrink
    else 0.0
  }

  /** `count` steps. */
  def many(x: Double, drift: Double, count: Int): Double =
    if (count == 1) one(x, drift)
    else if (threshold == 0) along(x, drift, count)
    else if (x > 0) fromRight(x, drift, count)
    else if (x < 0) -fromRight(-x, -drift, count)
    else if (drift > threshold) along(0.0, drift - threshold, count)
    else if (drift < -threshold) along(0.0, drift + threshold, count)
    else 0.0

  /** `count` steps on one affine piece. */
  private def along(x: Double, slope: Double, count: Int): Double =
    if (delta == 0) x - slope * count
    else if (count < length) x * tabled(2 * count) - slope * tabled(2 * count + 1)
    else {
      val less = math.expm1(-count * rate)
      x * (1 + less) + slope * less / delta
    }

  private def fromRight(x: Double, drift: Double, count: Int): Double = {
    val q = drift + threshold
    if (q <= 0) along(x, q, count)
    else {
      val last = along(x, q, count - 1)
      if (last > q) (last - q) * shrink // monotone: no step before was off the piece either
      else leaving(x, drift, count)
    }
  }

  private def leaving(x: Double, drift: Double, count: Int): Double = {
    val q      = drift + threshold
    val inside = math.min(count - 1, stepsUntil(x, q))
    val next   = one(along(x, q, inside), drift)
    val rest   = count - inside - 1
    if (rest == 0) next
    else if (next > 0) many(next, drift, rest) // only where `inside` was rounded down
    else if (drift > threshold) along(next, drift - threshold, rest)
    else 0.0
  }

  /** How many steps until x <= q. */
  private def stepsUntil(x: Double, q: Double): Int =
    if (x <= q) 0
    else {
      val steps = if (delta > 0) math.log1p(x / q * delta) / rate - 1 else x / q - 1
      math.min(math.ceil(steps), Int.MaxValue.toDouble).toInt.max(0)
    }
}

object LaggedProx {

  /** Steps that are looked up: 16 KiB. */
  private val Tabled = 1024
}
