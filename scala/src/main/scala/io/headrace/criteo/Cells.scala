package io.headrace.criteo

import org.apache.spark.sql.types.{BinaryType, DataType, Decimal, IntegerType, LongType, StringType}
import org.apache.spark.sql.vectorized.{ColumnVector, ColumnarArray, ColumnarMap}
import org.apache.spark.unsafe.types.UTF8String

/** A column of a batch in plain arrays, filled anew for each batch. `null` cells are marked, their value is any. */
sealed abstract class Cells(kind: DataType, capacity: Int) extends ColumnVector(kind) {
  private val missing      = new Array[Boolean](capacity)
  private var missingCells = 0

  final def setNull(row: Int): Unit = {
    missing(row) = true
    missingCells += 1
  }

  /** Forget all rows; values need no clearing, as every row is set before it is read. */
  def clear(): Unit =
    if (missingCells > 0) {
      java.util.Arrays.fill(missing, false)
      missingCells = 0
    }

  /** Take back a row that was begun and will be begun anew. */
  final def unset(row: Int): Unit =
    if (missing(row)) {
      missing(row) = false
      missingCells -= 1
    }

  final override def hasNull: Boolean            = missingCells > 0
  final override def numNulls: Int               = missingCells
  final override def isNullAt(row: Int): Boolean = missing(row)
  final override def close(): Unit               = ()

  override def getInt(row: Int): Int                                           = refuse()
  override def getLong(row: Int): Long                                         = refuse()
  override def getBinary(row: Int): Array[Byte]                                = refuse()
  override def getUTF8String(row: Int): UTF8String                             = refuse()
  final override def getBoolean(row: Int): Boolean                             = refuse()
  final override def getByte(row: Int): Byte                                   = refuse()
  final override def getShort(row: Int): Short                                 = refuse()
  final override def getFloat(row: Int): Float                                 = refuse()
  final override def getDouble(row: Int): Double                               = refuse()
  final override def getArray(row: Int): ColumnarArray                         = refuse()
  final override def getMap(row: Int): ColumnarMap                             = refuse()
  final override def getChild(at: Int): ColumnVector                           = refuse()
  final override def getDecimal(row: Int, precision: Int, scale: Int): Decimal = refuse()

  private def refuse(): Nothing = throw new UnsupportedOperationException(s"a column of $kind")
}

object Cells {

  /** Cells for a column of one of the types of the reader's schemas. */
  def of(kind: DataType, capacity: Int): Cells = kind match {
    case LongType    => new LongCells(capacity)
    case IntegerType => new IntCells(capacity)
    case _           => new BytesCells(kind, capacity)
  }
}

final class LongCells(capacity: Int) extends Cells(LongType, capacity) {
  private val values = new Array[Long](capacity)

  def set(row: Int, value: Long): Unit = values(row) = value
  override def getLong(row: Int): Long = values(row)
}

final class IntCells(capacity: Int) extends Cells(IntegerType, capacity) {
  private val values = new Array[Int](capacity)

  def set(row: Int, value: Int): Unit = values(row) = value
  override def getInt(row: Int): Int  = values(row)
}

/** Texts and raw bytes. */
final class BytesCells(kind: DataType, capacity: Int) extends Cells(kind, capacity) {
  require(kind == StringType || kind == BinaryType, s"$kind")
  private val values = new Array[Array[Byte]](capacity)

  def set(row: Int, value: Array[Byte]): Unit = values(row) = value
  override def clear(): Unit                  = {
    super.clear()
    java.util.Arrays.fill(values.asInstanceOf[Array[AnyRef]], null)
  }
  override def getBinary(row: Int): Array[Byte]    = values(row)
  override def getUTF8String(row: Int): UTF8String = UTF8String.fromBytes(values(row))
}
