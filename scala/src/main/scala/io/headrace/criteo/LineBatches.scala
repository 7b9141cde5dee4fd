package io.headrace.criteo

import java.nio.charset.StandardCharsets.UTF_8
import java.util.Arrays.copyOfRange

import org.apache.spark.sql.connector.read.PartitionReader
import org.apache.spark.sql.types.StructType
import org.apache.spark.sql.vectorized.{ColumnVector, ColumnarBatch}

/** A task's lines in batches: of some kind of line, with the columns that are wanted of it. */
sealed abstract class LineBatches(task: ReadTask, format: LineFormat) extends PartitionReader[ColumnarBatch] {
  private val pieces             = task.pieces.iterator
  private var reader: LineReader = _
  protected var piece: Piece     = _
  protected val columns: Array[Cells]

  private lazy val batch = new ColumnarBatch(columns.asInstanceOf[Array[ColumnVector]])

  /** Put the line into row `row` if it is one of those wanted; its bytes begin behind a byte-order mark. */
  protected def take(line: LineReader, row: Int): Boolean

  final override def next(): Boolean = {
    columns.foreach(_.clear())
    var row  = 0
    var more = true
    while (row < LineBatches.Rows && more) {
      more = advance()
      if (more && !isHeader && take(reader, row)) row += 1
    }
    batch.setNumRows(row)
    row > 0
  }

  final override def get(): ColumnarBatch = batch
  final override def close(): Unit        = if (reader != null) reader.close()

  protected final def isFirst: Boolean = reader.line == 0

  private def isHeader: Boolean = piece.file.header && isFirst

  private def advance(): Boolean = {
    while (reader == null || !reader.next()) {
      if (reader != null) reader.close()
      if (!pieces.hasNext) return false
      piece = pieces.next()
      reader = new LineReader(piece, format)
    }
    true
  }

  /** Parse a line, with a byte-order mark left out where it begins the file. */
  protected final def accepts(line: LineReader, row: Int, cells: RowCells): Boolean =
    line.length <= format.maxLineBytes && {
      val mark = if (isFirst) LineFormat.markLength(line.data, line.start, line.end) else 0
      format.parse(line.data, line.start + mark, line.end, row, cells)
    }
}

private object LineBatches {
  val Rows = 2048 // 43 columns of them stay in a core's cache
}

/** Good lines: key, day, label and the 39 features, or those of them that are wanted. */
final class AcceptedLines(task: ReadTask, format: LineFormat, wanted: StructType)
    extends LineBatches(task, format)
    with RowCells {
  import LineBatches.Rows

  override protected val columns: Array[Cells] = wanted.fields.map(field => Cells.of(field.dataType, Rows))

  private val key      = one("key").map(_.asInstanceOf[LongCells]).orNull
  private val day      = one("day").map(_.asInstanceOf[IntCells]).orNull
  private val labels   = one("label").map(_.asInstanceOf[IntCells]).orNull
  private val features = Schemas.Features.map(one(_).map(_.asInstanceOf[LongCells]).orNull)

  private def one(name: String): Option[Cells] = wanted.fieldNames.indexOf(name) match {
    case -1 => None
    case at => Some(columns(at))
  }

  override protected def take(line: LineReader, row: Int): Boolean = {
    val good = accepts(line, row, this)
    if (good) {
      if (key != null) key.set(row, ReadPlan.key(piece) - piece.firstLine + line.line)
      if (day != null) day.set(row, piece.file.day)
    } else columns.foreach(_.unset(row))
    good
  }

  override def label(row: Int, value: Int): Unit               = if (labels != null) labels.set(row, value)
  override def noLabel(row: Int): Unit                         = if (labels != null) labels.setNull(row)
  override def value(row: Int, column: Int, value: Long): Unit = {
    val cells = features(column)
    if (cells != null) cells.set(row, value)
  }
  override def missing(row: Int, column: Int): Unit = {
    val cells = features(column)
    if (cells != null) cells.setNull(row)
  }
}

/** Refused lines with where they stand, their first bytes and why. */
final class RejectedLines(task: ReadTask, format: LineFormat, wanted: StructType) extends LineBatches(task, format) {
  import LineBatches.Rows

  override protected val columns: Array[Cells] = wanted.fields.map(field => Cells.of(field.dataType, Rows))

  private val names = wanted.fieldNames

  override protected def take(line: LineReader, row: Int): Boolean = {
    val refused = !accepts(line, row, RejectedLines.Nowhere)
    if (refused) names.indices.foreach(at => set(names(at), columns(at), line, row))
    refused
  }

  private def set(name: String, cells: Cells, line: LineReader, row: Int): Unit = cells match {
    case longs: LongCells =>
      longs.set(row, if (name == "line") line.line else if (name == "offset") line.offset else line.length)
    case ints: IntCells    => ints.set(row, piece.file.ordinal)
    case bytes: BytesCells =>
      bytes.set(row, if (name == "raw") head(line) else text(name, line).getBytes(UTF_8))
  }

  private def head(line: LineReader): Array[Byte] = {
    val kept = if (line.length > format.maxLineBytes) format.headBytes else format.rawBytes
    copyOfRange(line.data, line.start, math.min(line.end.toLong, line.start.toLong + kept).toInt)
  }

  private def text(name: String, line: LineReader): String =
    if (name == "file") piece.file.path
    else if (line.length > format.maxLineBytes) format.tooLong
    else format.reason(copyOfRange(line.data, line.start, line.end), isFirst)
}

private object RejectedLines {
  object Nowhere extends RowCells {
    override def label(row: Int, value: Int): Unit               = ()
    override def noLabel(row: Int): Unit                         = ()
    override def value(row: Int, column: Int, value: Long): Unit = ()
    override def missing(row: Int, column: Int): Unit            = ()
  }
}
