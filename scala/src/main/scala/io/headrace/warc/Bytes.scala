package io.headrace.warc

import org.apache.hadoop.fs.FSDataInputStream

/** A file's bytes, read from any place. */
trait Bytes extends AutoCloseable {

  def size: Long

  /** Read up to `length` bytes from `offset` on; -1 at the end of the file. */
  def read(offset: Long, into: Array[Byte], start: Int, length: Int): Int
}

/** Bytes of a file of any Hadoop file system. */
final class HadoopBytes(stream: FSDataInputStream, val size: Long) extends Bytes {

  override def read(offset: Long, into: Array[Byte], start: Int, length: Int): Int = {
    if (stream.getPos != offset) stream.seek(offset)
    stream.read(into, start, length)
  }

  override def close(): Unit = stream.close()
}

/** Bytes in memory. */
final class ArrayBytes(bytes: Array[Byte]) extends Bytes {

  override def size: Long = bytes.length.toLong

  override def read(offset: Long, into: Array[Byte], start: Int, length: Int): Int =
    if (offset >= bytes.length) -1
    else {
      val count = math.min(length, bytes.length - offset.toInt)
      System.arraycopy(bytes, offset.toInt, into, start, count)
      count
    }

  override def close(): Unit = ()
}

/**
 * A window that moves over a file: `buffer(position until limit)` are the bytes from `offset` on.
 *
 * @param end bytes from here on are as if they were not there
 */
final class Window(bytes: Bytes, val end: Long) {
  private val capacity    = math.max(16L, math.min(Window.Capacity.toLong, end)).toInt
  val buffer: Array[Byte] = new Array[Byte](capacity + FastInflate.SLACK)
  var position: Int       = 0
  var limit: Int          = 0
  private var base        = 0L

  def offset: Long = base + position

  def available: Int = limit - position

  /** Whether no byte is left; reads on if that is not known yet. */
  def atEnd: Boolean = available == 0 && !fill()

  /** Replace the bytes that were used up by the next ones; false at the end. */
  def fill(): Boolean = {
    base += position
    System.arraycopy(buffer, position, buffer, 0, available)
    limit -= position
    position = 0
    load()
  }

  /** Whether `count` bytes can be had, which are then in the buffer. */
  def require(count: Int): Boolean = {
    while (available < count && (if (position + count > capacity) fill() else load())) {}
    available >= count
  }

  def seek(to: Long): Unit = {
    val target = to - base
    if (target >= 0 && target <= limit) position = target.toInt
    else {
      base = to
      position = 0
      limit = 0
    }
  }

  private def load(): Boolean = {
    val room = math.min((capacity - limit).toLong, end - base - limit).toInt
    val got  = if (room <= 0) -1 else bytes.read(base + limit, buffer, limit, room)
    if (got > 0) limit += got
    got > 0
  }
}

object Window {

  /** Room for the longest gzip header field (64 KiB) and much more. */
  val Capacity: Int = 1 << 20
}
