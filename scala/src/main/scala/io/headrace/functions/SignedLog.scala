package io.headrace.functions

import org.apache.spark.sql.connector.catalog.functions.ScalarFunction
import org.apache.spark.sql.types.{DataType, FloatType, LongType}

/** sign(x) log(1 + |x|), rounded once, from float64. */
final class SignedLog extends ScalarFunction[java.lang.Float] {
  override def inputTypes(): Array[DataType] = Array(LongType)
  override def resultType(): DataType        = FloatType
  override def isResultNullable: Boolean     = false
  override def name(): String                = "signed_log"
  override def canonicalName(): String       = "io.headrace.signed_log"
  override def toString: String              = "signed_log(bigint): sign(x) log(1 + |x|) as float"
}

object SignedLog {
  private val Tabled = 1 << 16 // counts are small: 256 KiB of results save nearly all calls of a slow logarithm

  private val table = Array.tabulate(Tabled)(n => StrictMath.log1p(n.toDouble).toFloat)

  def invoke(x: Long): Float =
    if (x >= 0) ofCount(x)
    else if (x == Long.MinValue) -StrictMath.log1p(-x.toDouble).toFloat
    else -ofCount(-x)

  private def ofCount(n: Long): Float = if (n < Tabled) table(n.toInt) else StrictMath.log1p(n.toDouble).toFloat
}
