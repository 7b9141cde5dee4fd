package io.headrace.criteo

import java.io.{IOException, InputStream}
import java.nio.channels.{Channels, FileChannel}
import java.nio.file.Paths
import java.nio.file.StandardOpenOption.READ
import java.util.zip.CRC32

/** A file whose bytes are not those that were scanned. */
final class ChangedFileError(path: String)
    extends IOException(s"ChangedFileError: $path is no longer what it was when its checksum was taken")

/**
 * The lines of a piece, one after the other, in bounded memory; at its end the bytes prove to be those scanned.
 *
 * After `next` the line is `data` from `start` to `end`, without its newline. Of a line over the limit that did not fit
 * the buffer, `data` holds the head only; `length` is always that of the whole line.
 */
final class LineReader(piece: Piece, format: LineFormat) extends AutoCloseable {
  import LineReader._

  private val input        = open(piece)
  private val crc          = new CRC32
  private var position     = 0L // bytes read of the piece
  private var buffer       = new Array[Byte](BufferBytes)
  private var filled       = 0
  private var unread       = 0  // where the next line begins in the buffer
  private var ended        = false
  private var nextLine     = piece.firstLine
  private var nextOffset   = piece.start
  var data: Array[Byte]    = buffer
  var start, end           = 0
  var line, offset, length = 0L

  /** Go to the next line; false behind the last. */
  def next(): Boolean = {
    val newline = findNewline()
    if (newline < 0 && filled == unread) return false
    line = nextLine
    offset = nextOffset
    data = buffer
    start = unread
    end = if (newline < 0) filled else newline
    if (newline < 0 && !ended) skipLong()
    else {
      length = (end - start).toLong
      unread = math.min(end + 1, filled)
    }
    nextLine += 1
    nextOffset += length + 1
    true
  }

  override def close(): Unit = input.close()

  /** Where the line at `unread` ends in the buffer, which is filled as needed; -1 where the piece or the limit ends. */
  private def findNewline(): Int = {
    var at = unread
    while (true) {
      at = Words.newline(buffer, at, filled)
      if (at < filled) return at
      if (ended || at - unread > format.maxLineBytes) return -1
      at -= makeRoom()
      fill()
    }
    -1
  }

  /** Move the line's beginning to the front, and grow where it fills the buffer; by how much it moved. */
  private def makeRoom(): Int = {
    val moved = unread
    if (filled == buffer.length) {
      val held   = filled - unread
      val larger = if (held > buffer.length / 2) new Array[Byte](grown(buffer.length)) else buffer
      System.arraycopy(buffer, unread, larger, 0, held)
      buffer = larger
      filled = held
      unread = 0
      moved
    } else 0
  }

  private def fill(): Unit = {
    val count = input.read(buffer, filled, buffer.length - filled)
    if (count < 0) finish()
    else {
      crc.update(buffer, filled, count)
      position += count
      filled += count
    }
  }

  private def finish(): Unit = {
    ended = true
    if (crc.getValue != piece.crc32 || position != piece.end - piece.start) throw new ChangedFileError(piece.file.path)
  }

  /** Keep the head of a line that is over the limit for certain, and pass over the rest of it. */
  private def skipLong(): Unit = {
    val head = java.util.Arrays.copyOfRange(buffer, start, start + format.headBytes)
    var gone = (filled - start).toLong
    var at   = filled
    while (at == filled && !ended) {
      filled = 0
      fill()
      at = Words.newline(buffer, 0, filled)
      gone += at
    }
    unread = math.min(at + 1, filled)
    data = head
    start = 0
    end = head.length
    length = gone
  }
}

private object LineReader {
  val BufferBytes = 1 << 20

  def grown(size: Int): Int = math.min(size.toLong * 2, Int.MaxValue - 16L).toInt

  def open(piece: Piece): InputStream = {
    val channel = FileChannel.open(Paths.get(piece.file.path), READ)
    try {
      if (piece.file.gzip) new GzipMembers(Channels.newInputStream(channel), piece.file.path)
      else new Bounded(channel, piece.start, piece.end)
    } catch {
      case fault: Throwable =>
        channel.close()
        throw fault
    }
  }
}

/** The bytes [start, end) of a file. */
private final class Bounded(channel: FileChannel, start: Long, end: Long) extends InputStream {
  private val stream = Channels.newInputStream(channel.position(start))
  private var left   = end - start

  override def read(): Int = throw new UnsupportedOperationException("read blocks")

  override def read(into: Array[Byte], offset: Int, length: Int): Int = {
    if (left == 0) return -1
    val count = stream.read(into, offset, math.min(length.toLong, left).toInt)
    if (count > 0) left -= count
    count
  }

  override def close(): Unit = channel.close()
}
