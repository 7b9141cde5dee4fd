package io.headrace.functions

import org.apache.spark.sql.connector.catalog.functions.ScalarFunction
import org.apache.spark.sql.types.{DataType, IntegerType, LongType}

import io.headrace.ml.Categories

/** The id of a hashed value: 3 + value mod size, the remainder never negative. */
final class Bucket extends ScalarFunction[java.lang.Integer] {
  override def inputTypes(): Array[DataType] = Array(LongType, IntegerType)
  override def resultType(): DataType        = IntegerType
  override def isResultNullable: Boolean     = false
  override def name(): String                = "bucket"
  override def canonicalName(): String       = "io.headrace.bucket"
  override def toString: String              = "bucket(bigint, int): 3 + value mod size as int"
}

object Bucket {
  def invoke(value: Long, size: Int): Int = Math.floorMod(value, size) + Categories.FirstId
}
