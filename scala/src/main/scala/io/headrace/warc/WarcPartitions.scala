package io.headrace.warc

import java.io.{BufferedReader, InputStreamReader}
import java.nio.charset.StandardCharsets.UTF_8

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.Path
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.connector.read.{InputPartition, PartitionReader, PartitionReaderFactory}
import org.apache.spark.sql.types.StructType
import org.apache.spark.util.SerializableConfiguration

private final class WarcReaderFactory(
    columns: StructType,
    filter: TypeFilter,
    options: WarcOptions,
    conf: SerializableConfiguration
) extends PartitionReaderFactory {

  override def createReader(partition: InputPartition): PartitionReader[InternalRow] = {
    val parts = partition match {
      case Slices(slices)    => slices.iterator.map(OpenPart.slice(_, conf.value))
      case Lookups(manifest) => new Manifest(manifest.path, options, conf.value)
      case other             => throw new IllegalArgumentException(other.toString)
    }
    new WarcPartitionReader(parts, columns, filter, options)
  }
}

/** A stretch of a file to read: `base` is the offset of its first byte in the file. */
private final class OpenPart(
    val file: String,
    val bytes: Bytes,
    val range: Range,
    val base: Long = 0,
    val most: Int = Int.MaxValue
)

private object OpenPart {

  def slice(slice: Slice, conf: Configuration): OpenPart = {
    val path   = new Path(slice.file.path)
    val stream = path.getFileSystem(conf).open(path)
    new OpenPart(slice.file.path, new HadoopBytes(stream, slice.file.size), Range(slice.from, slice.until))
  }
}

/** Rows of the records of some parts, one part after the other. */
private final class WarcPartitionReader(
    parts: Iterator[OpenPart],
    columns: StructType,
    filter: TypeFilter,
    options: WarcOptions
) extends PartitionReader[InternalRow] {
  private var part: OpenPart     = _
  private var reader: WarcReader = _
  private var rows: Rows         = _
  private var count              = 0
  private var row: InternalRow   = _

  override def next(): Boolean = {
    row = null
    while (row == null && (reader != null || open())) {
      if (count < part.most && reader.next()) take(reader.record) else shut()
    }
    row != null
  }

  override def get(): InternalRow = row

  override def close(): Unit = shut()

  private def open(): Boolean = parts.hasNext && {
    part = parts.next()
    rows = new Rows(part.file, columns, options)
    val made = rows
    reader = new WarcReader(part.file, part.bytes, options.limits, part.range, wanted(made, _))
    count = 0
    true
  }

  private def wanted(rows: Rows, record: Record): Boolean = {
    val kind = record.recordType
    rows.needsBlock && rows.isWanted(kind) && filter.accepts(if (kind == null) null else kind.toString, isIntact = true)
  }

  private def take(record: Record): Unit = {
    count += 1
    record.offset += part.base
    if (options.strict && !record.isIntact) throw new DamagedFile(part.file, record.offset, record.error)
    val accepted = filter.filters.isEmpty || {
      val kind = record.recordType
      filter.accepts(if (kind == null) null else kind.toString, record.isIntact)
    }
    if (accepted) row = rows.row(record)
  }

  private def shut(): Unit = if (reader != null) {
    reader.close()
    reader = null
  }
}

/** Single records: every line of a manifest is a part, `file<TAB>offset<TAB>length`. */
private final class Manifest(manifest: String, options: WarcOptions, conf: Configuration) extends Iterator[OpenPart] {
  private val path  = new Path(manifest)
  private val lines = new BufferedReader(new InputStreamReader(path.getFileSystem(conf).open(path), UTF_8))
  private var line  = readLine()

  override def hasNext: Boolean = line != null

  override def next(): OpenPart = {
    val part = open(line)
    line = readLine()
    part
  }

  private def readLine(): String = {
    val text = lines.readLine()
    if (text == null) lines.close()
    text
  }

  private def open(line: String): OpenPart = {
    val words = line.split('\t')
    val valid =
      words.length == 3 && words.drop(1).forall(word => word.nonEmpty && word.length <= 18 && word.forall(_.isDigit))
    if (!valid)
      throw new IllegalArgumentException(s"$manifest: '$line' is not file, offset and length with tabs between")
    val (offset, length) = (words(1).toLong, words(2).toLong)
    val file             = Manifest.resolve(options.root, words(0))
    val fs               = file.getFileSystem(conf)
    val size             = math.max(0L, math.min(length, fs.getFileStatus(file).getLen - offset))
    val bytes            = new PartOfFile(new HadoopBytes(fs.open(file), offset + size), offset, size)
    new OpenPart(words(0), bytes, Range(0, Long.MaxValue), offset)
  }
}

private object Manifest {

  /** A name under the root that cannot lead out of it; where no root is set, the name as it is. */
  def resolve(root: Option[String], name: String): Path = root match {
    case None       => new Path(name)
    case Some(base) =>
      val steps = name.split('/')
      if (name.startsWith("/") || name.contains(":") || steps.contains(".."))
        throw new IllegalArgumentException(s"'$name' leads out of the root $base")
      new Path(base, name)
  }
}

/** Some bytes of a file as if they were all. */
private final class PartOfFile(file: Bytes, base: Long, val size: Long) extends Bytes {

  override def read(offset: Long, into: Array[Byte], start: Int, length: Int): Int = {
    val left = math.min(length.toLong, size - offset).toInt
    if (left <= 0) -1 else file.read(base + offset, into, start, left)
  }

  override def close(): Unit = file.close()
}
