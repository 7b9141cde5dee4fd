package io.headrace.warc

import net.jpountz.xxhash.{StreamingXXHash32, XXHashFactory}

/** An lz4 frame with independent or linked blocks, and the skippable frames before it; its checksums are checked. */
final class Lz4Frame(limits: Limits) extends Compressed {
  import Lz4Frame._

  private val content: StreamingXXHash32 = XXHashFactory.fastestInstance().newStreamingHash32(0)
  private var window: Window             = _
  private var blocks                     = new Array[Byte](0)
  private var packed                     = new Array[Byte](0)
  private var from, to                   = 0
  private var flags                      = 0
  private var maxBlock                   = 0
  private var told                       = -1L
  private var first                      = 0L
  private var out                        = 0L
  private var ended                      = false

  override def name: String = "lz4 frame"

  override def suffixes: Seq[String] = Seq(".lz4")

  override def isAt(window: Window): Boolean =
    window.require(4) && {
      val magic = Frames.int(window)
      magic == Magic || Frames.isSkippable(magic)
    }

  override def begin(window: Window): Unit = {
    this.window = window
    first = window.offset
    out = 0
    ended = false
    from = 0
    to = 0
    content.reset()
    Frames.passSkippable(window, name)
    if (!window.require(4) || Frames.int(window) != Magic) throw new BadMember(s"no $name begins here")
    need(7)
    flags = window.buffer(window.position + 4)
    maxBlock = BlockSizes(window.buffer(window.position + 5) >> 4 & 7)
    val length = 2 + (if (has(ContentSize)) 8 else 0) + (if (has(DictionaryId)) 4 else 0)
    if ((flags & 0xc0) != 0x40 || maxBlock == 0 || has(DictionaryId))
      throw new BadMember("an lz4 frame of unknown kind")
    need(4 + length + 1)
    window.position += 4
    val sum = XXHashFactory.fastestInstance().hash32().hash(window.buffer, window.position, length, 0) >> 8 & 0xff
    told = if (has(ContentSize)) Frames.int(window, 4, 2) & 0xffffffffL | Frames.int(window, 4, 6).toLong << 32 else -1L
    window.position += length
    if (sum != (window.buffer(window.position) & 0xff)) throw new BadMember("the lz4 frame's header is damaged")
    window.position += 1
    if (blocks.length < History + maxBlock) blocks = new Array[Byte](History + maxBlock)
  }

  override def read(into: Array[Byte], start: Int, length: Int): Int = {
    if (from == to && !ended) nextBlock()
    if (ended) -1
    else {
      val count = math.min(length, to - from)
      System.arraycopy(blocks, from, into, start, count)
      from += count
      count
    }
  }

  override def offset: Long = window.offset

  override def produced: Long = out

  private def nextBlock(): Unit =
    do {
      need(4)
      val header = Frames.int(window)
      window.position += 4
      if (header == 0) finish() else decode(header & 0x7fffffff, compressed = header > 0)
    } while (from == to && !ended)

  private def decode(length: Int, compressed: Boolean): Unit = {
    if (length > maxBlock) throw damaged
    keepHistory()
    load(length)
    val begin = to
    if (compressed) to = Lz4Block.decode(packed, 0, length, blocks, begin, begin + maxBlock)
    else {
      System.arraycopy(packed, 0, blocks, begin, length)
      to = begin + length
    }
    if (to < 0) throw damaged
    if (has(BlockChecksum)) {
      need(4)
      if (Frames.int(window) != XXHashFactory.fastestInstance().hash32().hash(packed, 0, length, 0)) throw damaged
      window.position += 4
    }
    from = begin
    if (has(ContentChecksum)) content.update(blocks, begin, to - begin)
    out += to - begin
    Member.checkRatio(window.offset - first, out, limits, name)
  }

  /** A block may be longer than the window. */
  private def load(length: Int): Unit = {
    if (packed.length < maxBlock) packed = new Array[Byte](maxBlock)
    var done = 0
    while (done < length) {
      if (window.atEnd) throw Frames.cut(name)
      val count = math.min(length - done, window.available)
      System.arraycopy(window.buffer, window.position, packed, done, count)
      window.position += count
      done += count
    }
  }

  /** Linked blocks refer to the 64 KiB before them. */
  private def keepHistory(): Unit = {
    val kept = if (has(Independent)) 0 else math.min(History, to)
    System.arraycopy(blocks, to - kept, blocks, 0, kept)
    to = kept
    from = kept
  }

  private def finish(): Unit = {
    if (has(ContentChecksum)) {
      need(4)
      val sum = Frames.int(window)
      window.position += 4
      if (sum != content.getValue) throw new BadMember("the lz4 frame's checksum does not hold", ended = true)
    }
    if (told >= 0 && told != out) throw new BadMember("the lz4 frame's length does not hold", ended = true)
    ended = true
  }

  private def has(flag: Int): Boolean = (flags & flag) != 0

  private def need(count: Int): Unit = if (!window.require(count)) throw Frames.cut(name)

  private def damaged = new BadMember("the lz4 frame is damaged")
}

private object Lz4Frame {
  val Magic           = 0x184d2204
  val DictionaryId    = 1
  val ContentChecksum = 4
  val ContentSize     = 8
  val BlockChecksum   = 16
  val Independent     = 32
  val History         = 64 << 10
  val BlockSizes      = Array(0, 0, 0, 0, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
}

/** The lz4 block format: literals, and copies of what came before, also of earlier blocks. */
private[warc] object Lz4Block {

  /**
   * Decompress a block into `into(begin until at most end)`; what lies before `begin` may be referred to.
   *
   * @return the offset behind the last byte; -1 if the block is damaged
   */
  def decode(from: Array[Byte], start: Int, length: Int, into: Array[Byte], begin: Int, end: Int): Int = {
    val stop = start + length
    var in   = start
    var out  = begin
    while (in < stop) {
      val token    = from(in) & 0xff
      var literals = token >>> 4
      in += 1
      if (literals == 15) {
        val packed = extend(from, in, stop, literals)
        in = (packed >>> 32).toInt
        literals = packed.toInt
      }
      if (literals < 0 || in < 0 || literals > stop - in || literals > end - out) return -1
      System.arraycopy(from, in, into, out, literals)
      in += literals
      out += literals
      if (in < stop) {
        if (stop - in < 2) return -1
        val back = (from(in) & 0xff) | (from(in + 1) & 0xff) << 8
        in += 2
        var count = token & 15
        if (count == 15) {
          val packed = extend(from, in, stop, count)
          in = (packed >>> 32).toInt
          count = packed.toInt
        }
        count += 4
        if (in < 0 || count < 4 || back == 0 || back > out || count > end - out) return -1
        copy(into, out - back, out, count)
        out += count
      }
    }
    out
  }

  /** Lengths go on in bytes until one is not 255; gives (offset behind them) << 32 | length, all ones if cut. */
  private def extend(from: Array[Byte], at: Int, stop: Int, length: Int): Long = {
    var in  = at
    var sum = length
    while (in < stop && from(in) == -1) {
      sum += 255
      in += 1
    }
    if (in >= stop || sum < 0) -1L else (in + 1).toLong << 32 | (sum + (from(in) & 0xff))
  }

  /** Copy forwards, byte after byte: source and target may overlap, which repeats. */
  private def copy(bytes: Array[Byte], source: Int, target: Int, count: Int): Unit =
    if (target - source >= count) System.arraycopy(bytes, source, bytes, target, count)
    else (0 until count).foreach(i => bytes(target + i) = bytes(source + i))
}
