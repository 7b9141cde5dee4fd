package io.headrace.warc

import java.io.{IOException, InputStream}

import com.github.luben.zstd.{RecyclingBufferPool, ZstdInputStreamNoFinalizer}

/**
 * A zstd frame (RFC 8878), with the skippable frames before it; its checksum is checked where it has one.
 *
 * The end of a frame is found by walking its blocks' headers, then its bytes are decompressed as a stream.
 */
final class ZstdFrame(limits: Limits) extends Compressed {
  import ZstdFrame._

  private var window: Window                     = _
  private var stream: ZstdInputStreamNoFinalizer = _
  private var first                              = 0L
  private var last                               = 0L
  private var out                                = 0L

  override def name: String = "zstd frame"

  override def suffixes: Seq[String] = Seq(".zst", ".zstd")

  override def isAt(window: Window): Boolean =
    window.require(4) && {
      val magic = Frames.int(window)
      magic == Magic || Frames.isSkippable(magic)
    }

  override def begin(window: Window): Unit = {
    close()
    this.window = window
    first = window.offset
    out = 0
    last = first
    Frames.passSkippable(window, name)
    if (!window.require(4) || Frames.int(window) != Magic) throw new BadMember(s"no $name begins here")
    val start = window.offset
    last = end(start)
    window.seek(start)
    stream = new ZstdInputStreamNoFinalizer(FrameBytes, RecyclingBufferPool.INSTANCE)
  }

  override def read(into: Array[Byte], start: Int, length: Int): Int =
    try {
      val count = stream.read(into, start, length)
      if (count > 0) {
        out += count
        Member.checkRatio(math.min(offset, last) - first, out, limits, name)
      } else {
        window.seek(last)
        close()
      }
      if (count > 0) count else -1
    } catch {
      case fault: IOException => throw new BadMember(s"the zstd frame is damaged: ${fault.getMessage}")
    }

  override def offset: Long = if (stream == null) last else window.offset

  override def produced: Long = out

  override def close(): Unit = if (stream != null) {
    stream.close()
    stream = null
  }

  /** Offset behind the frame that begins at `start`. */
  private def end(start: Long): Long = {
    need(6)
    val descriptor = window.buffer(window.position + 4) & 0xff
    val single     = (descriptor & 0x20) != 0
    val sizeBytes  = descriptor >> 6 match {
      case 0 => if (single) 1 else 0
      case n => 1 << n
    }
    val idBytes = Array(0, 1, 2, 4)(descriptor & 3)
    window.seek(start + 5 + (if (single) 0 else 1) + idBytes + sizeBytes)
    while (passBlock()) {}
    val behind = window.offset + (if ((descriptor & 4) != 0) 4 else 0)
    if (behind > window.end) throw Frames.cut(name)
    behind
  }

  /** Go behind the block at the window's offset; false if it was the last. */
  private def passBlock(): Boolean = {
    need(3)
    val header = Frames.int(window, 3)
    val kind   = header >> 1 & 3
    if (kind == 3) throw new BadMember("the zstd frame is damaged: a block of reserved kind")
    window.seek(window.offset + 3 + (if (kind == 1) 1 else header >> 3))
    (header & 1) == 0
  }

  private def need(count: Int): Unit = if (!window.require(count)) throw Frames.cut(name)

  /** The window's bytes up to the frame's end. */
  private object FrameBytes extends InputStream {
    override def read(): Int = {
      val one = new Array[Byte](1)
      if (read(one, 0, 1) < 0) -1 else one(0) & 0xff
    }

    override def read(into: Array[Byte], start: Int, length: Int): Int = {
      val left = last - window.offset
      if (left <= 0 || window.atEnd) -1
      else {
        val count = math.min(math.min(length.toLong, left), window.available.toLong).toInt
        System.arraycopy(window.buffer, window.position, into, start, count)
        window.position += count
        count
      }
    }
  }
}

private object ZstdFrame {
  val Magic = 0xfd2fb528
}

/** What zstd and lz4 frames share: little-endian numbers and skippable frames. */
private object Frames {

  def int(window: Window, bytes: Int = 4, from: Int = 0): Int =
    (bytes - 1 to 0 by -1).foldLeft(0)((sum, i) => sum << 8 | (window.buffer(window.position + from + i) & 0xff))

  def isSkippable(magic: Int): Boolean = (magic & 0xfffffff0) == 0x184d2a50

  def passSkippable(window: Window, name: String): Unit =
    while (window.require(4) && isSkippable(int(window))) {
      if (!window.require(8)) throw cut(name)
      val next = window.offset + 8 + (int(window, from = 4) & 0xffffffffL)
      if (next > window.end) throw cut(name)
      window.seek(next)
    }

  def cut(name: String): BadMember = new BadMember(s"the file is cut: its last $name has no end")
}
