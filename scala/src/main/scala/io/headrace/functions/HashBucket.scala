package io.headrace.functions

import java.lang.Long.rotateLeft

import org.apache.spark.sql.connector.catalog.functions.ScalarFunction
import org.apache.spark.sql.types.{DataType, IntegerType, LongType}

/** The id of a hashed value: 3 + xxhash64(value) mod size, the hash as Spark SQL's `xxhash64` has it. */
final class HashBucket extends ScalarFunction[java.lang.Integer] {
  override def inputTypes(): Array[DataType] = Array(LongType, IntegerType)
  override def resultType(): DataType        = IntegerType
  override def isResultNullable: Boolean     = false
  override def name(): String                = "hash_bucket"
  override def canonicalName(): String       = "io.headrace.hash_bucket"
  override def toString: String              = "hash_bucket(bigint, int): 3 + xxhash64(value) mod size as int"
}

object HashBucket {
  private val Seed   = 42L
  private val Prime1 = 0x9e3779b185ebca87L
  private val Prime2 = 0xc2b2ae3d27d4eb4fL
  private val Prime3 = 0x165667b19e3779f9L
  private val Prime4 = 0x85ebca77c2b2ae63L
  private val Prime5 = 0x27d4eb2f165667c5L

  def invoke(value: Long, size: Int): Int = Bucket.invoke(hash(value), size)

  /** XXH64 of eight bytes. */
  private[functions] def hash(value: Long): Long = {
    val round = rotateLeft(value * Prime2, 31) * Prime1
    var mixed = rotateLeft((Seed + Prime5 + java.lang.Long.BYTES) ^ round, 27) * Prime1 + Prime4
    mixed = (mixed ^ mixed >>> 33) * Prime2
    mixed = (mixed ^ mixed >>> 29) * Prime3
    mixed ^ mixed >>> 32
  }
}
