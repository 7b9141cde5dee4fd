package io.headrace.criteo

import java.io.{EOFException, IOException, InputStream}
import java.util.zip.{CRC32, DataFormatException, Inflater}

/**
 * What a gzip file holds, all members one after the other (RFC 1952); every member's CRC-32 and length are checked.
 *
 * Zero padding between and behind members is passed over, as gzip does; other bytes there are damage. The JDK's own
 * stream ends without a word at both.
 */
final class GzipMembers(file: InputStream, path: String) extends InputStream {
  import GzipMembers._

  private val packed   = new Array[Byte](BufferBytes)
  private var at       = 0
  private var filled   = 0
  private val inflater = new Inflater(true)
  private val crc      = new CRC32
  private var inMember = false

  override def read(): Int = {
    val one = new Array[Byte](1)
    if (read(one, 0, 1) < 0) -1 else one(0) & 0xff
  }

  override def read(into: Array[Byte], offset: Int, length: Int): Int = {
    var count = 0
    while (count == 0 && length > 0) {
      if (!inMember && !nextMember()) return -1
      count = inflate(into, offset, length)
      crc.update(into, offset, count)
      if (inflater.finished) endMember()
    }
    count
  }

  override def close(): Unit = {
    inflater.end()
    file.close()
  }

  private def inflate(into: Array[Byte], offset: Int, length: Int): Int = {
    if (inflater.needsInput) {
      if (at >= filled && !fill()) throw new EOFException(s"$path is truncated: its last gzip member is not complete")
      inflater.setInput(packed, at, filled - at)
      at = filled
    }
    try inflater.inflate(into, offset, length)
    catch { case fault: DataFormatException => throw damaged(fault.getMessage) }
  }

  /** Read the next member's header, or return false at the end of the file. */
  private def nextMember(): Boolean = {
    var byte = readByte()
    while (byte == 0) byte = readByte()
    if (byte < 0) return false
    if (byte != 0x1f || need() != 0x8b || need() != Deflate) throw damaged("no gzip member where one should begin")
    val flags = need()
    skip(6)
    if ((flags & Extra) != 0) skip(need() | need() << 8)
    if ((flags & Name) != 0) skipText()
    if ((flags & Comment) != 0) skipText()
    if ((flags & HeaderCrc) != 0) skip(2)
    inflater.reset()
    crc.reset()
    inMember = true
    true
  }

  private def endMember(): Unit = {
    at = filled - inflater.getRemaining
    val length = inflater.getBytesWritten & 0xffffffffL
    if (need32() != crc.getValue) throw damaged("incorrect data check")
    if (need32() != length) throw damaged("incorrect length check")
    inMember = false
  }

  private def fill(): Boolean = {
    at = 0
    filled = math.max(file.read(packed, 0, packed.length), 0)
    filled > 0
  }

  private def readByte(): Int =
    if (at >= filled && !fill()) -1
    else {
      at += 1
      packed(at - 1) & 0xff
    }

  private def need(): Int = {
    val byte = readByte()
    if (byte < 0) throw new EOFException(s"$path is truncated: its last gzip member is not complete")
    byte
  }

  private def need32(): Long         = (0 until 4).foldLeft(0L)((value, byte) => value | need().toLong << 8 * byte)
  private def skip(bytes: Int): Unit = for (_ <- 0 until bytes) need()
  private def skipText(): Unit       = while (need() != 0) {}
  private def damaged(why: String): IOException = new IOException(s"$path is a damaged gzip file: $why")
}

private object GzipMembers {
  val BufferBytes: Int = 1 << 16
  val Deflate: Int     = 8
  val HeaderCrc: Int   = 2
  val Extra: Int       = 4
  val Name: Int        = 8
  val Comment: Int     = 16
}
