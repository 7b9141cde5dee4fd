package io.headrace.warc

import java.io.{ByteArrayInputStream, ByteArrayOutputStream, EOFException, InputStream, IOException}
import java.nio.charset.StandardCharsets.ISO_8859_1
import java.util.Locale
import java.util.zip.{GZIPInputStream, Inflater, InflaterInputStream, ZipException}

import com.github.luben.zstd.ZstdInputStreamNoFinalizer

/** The head of an HTTP message, and where its body begins. */
final class Http {
  val head: Head     = new Head
  var status: Int    = -1
  var bodyStart: Int = 0
  private val line   = "HTTP/".getBytes(ISO_8859_1)

  /** Read the message `buffer(start until end)`; what has no end of a head is all head, if it is no longer than that. */
  def read(buffer: Array[Byte], start: Int, end: Int, maxHeaderBytes: Int): Unit = {
    head.clear()
    status = -1
    val first = RecordStart.lineEnd(buffer, start, end)
    bodyStart = headEnd(buffer, start, end)
    if (bodyStart - start > maxHeaderBytes) bodyStart = start
    else {
      head.read(buffer, start, math.min(first + 1, end), bodyStart)
      status = statusOf(buffer, start, first)
    }
  }

  /** Whether the body may be under a transfer or content coding. */
  def isCoded: Boolean = head.find(Names.TransferEncoding) >= 0 || head.find(Names.ContentEncoding) >= 0

  def isChunked: Boolean = has(Names.TransferEncoding, "chunked")

  /** Content codings, the outermost last; `identity` is none. */
  def encodings: List[String] =
    head.value(Names.ContentEncoding) match {
      case None       => Nil
      case Some(text) =>
        text.toString
          .toLowerCase(Locale.ROOT)
          .split(',')
          .map(_.trim)
          .filterNot(c => c.isEmpty || c == "identity")
          .toList
    }

  private def has(name: Array[Byte], word: String) =
    head.value(name).exists(_.toString.toLowerCase(Locale.ROOT).contains(word))

  private def headEnd(buffer: Array[Byte], start: Int, end: Int): Int = {
    var at   = start
    var line = 0
    while (at < end) {
      val byte = buffer(at)
      at += 1
      if (byte == '\n') {
        if (line == 0) return at
        line = 0
      } else if (byte != '\r') line += 1
    }
    end
  }

  /** The number of a status line `HTTP/1.1 200 OK`; -1 for a request, or where there is none. */
  private def statusOf(buffer: Array[Byte], start: Int, end: Int): Int = {
    var at = start
    while (at - start < line.length && at < end && buffer(at) == line(at - start)) at += 1
    if (at - start < line.length) -1
    else {
      while (at < end && buffer(at) != ' ') at += 1
      while (at < end && buffer(at) == ' ') at += 1
      val from = at
      while (at < end && buffer(at) >= '0' && buffer(at) <= '9') at += 1
      if (at - from == 3) Text(buffer, from, at).number.toInt else -1
    }
  }
}

/**
 * The body of an HTTP message without its transfer and content codings.
 *
 * Archives often keep headers that no longer describe the body: a body that does not begin as its coding would is taken
 * as it is.
 *
 * @param error why the body is missing or not whole; null if it is
 */
final case class Body(bytes: Array[Byte], error: String)

object Body {

  def of(http: Http, buffer: Array[Byte], start: Int, end: Int, limits: Limits): Body = {
    val plain = if (http.isChunked) dechunk(buffer, start, end) else None
    val raw   = Body(plain.getOrElse(java.util.Arrays.copyOfRange(buffer, start, end)), null)
    http.encodings.reverse.foldLeft(raw)((body, coding) =>
      if (body.error == null) decode(body, coding, limits) else body
    )
  }

  /** The chunks of `buffer(start until end)` joined; None if these are no chunks. A missing end is forgiven. */
  def dechunk(buffer: Array[Byte], start: Int, end: Int): Option[Array[Byte]] = {
    val out = new ByteArrayOutputStream(end - start)
    var at  = start
    while (at < end) {
      val line = RecordStart.lineEnd(buffer, at, end)
      val size = chunkSize(buffer, at, line)
      if (size < 0)
        return if (out.size > 0 && at > start && isOnlyLineEnds(buffer, at, end)) Some(out.toByteArray) else None
      if (size == 0) return Some(out.toByteArray)
      val from  = math.min(line + 1, end)
      val count = math.min(size, (end - from).toLong).toInt
      out.write(buffer, from, count)
      at = from + count
      if (at < end && buffer(at) == '\r') at += 1
      if (at < end && buffer(at) != '\n') return None
      at += 1
    }
    if (end > start) Some(out.toByteArray) else None
  }

  private def isOnlyLineEnds(buffer: Array[Byte], start: Int, end: Int) =
    (start until end).forall(i => buffer(i) == '\r' || buffer(i) == '\n')

  /** The hexadecimal number that begins the line, up to an extension; -1 if there is none. */
  private def chunkSize(buffer: Array[Byte], start: Int, end: Int): Long = {
    var at   = start
    var size = 0L
    while (at < end && at - start < 15 && Character.digit(buffer(at).toChar, 16) >= 0) {
      size = size << 4 | Character.digit(buffer(at).toChar, 16)
      at += 1
    }
    val digits = at - start
    while (at < end && (buffer(at) == ' ' || buffer(at) == '\t')) at += 1
    val ends = at == end || buffer(at) == ';' || buffer(at) == '\r'
    if (digits > 0 && ends) size else -1
  }

  private def decode(body: Body, coding: String, limits: Limits): Body = {
    def in = new ByteArrayInputStream(body.bytes)
    coding match {
      case "gzip" | "x-gzip" if begins(body, 0x1f, 0x8b) => inflate(body, new GZIPInputStream(in, 1 << 16), limits)
      case "zstd" if begins(body, 0x28, 0xb5)            => inflate(body, new ZstdInputStreamNoFinalizer(in), limits)
      case "deflate" if body.bytes.isEmpty               => body
      case "deflate" if (body.bytes(0) & 0x0f) == 8      => inflate(body, new InflaterInputStream(in), limits)
      case "deflate"                                     => raw(body, in, limits)
      case "gzip" | "x-gzip" | "zstd"                    => body
      case other => Body(null, s"no decoder for content coding '${other.take(40)}'")
    }
  }

  /** Deflate without zlib's header is sent under the same name; text may be, too, that was decoded before. */
  private def raw(body: Body, in: InputStream, limits: Limits): Body = {
    val inflater = new Inflater(true)
    try {
      val decoded = inflate(body, new InflaterInputStream(in, inflater), limits)
      if (decoded.error == null) decoded else body
    } finally inflater.end()
  }

  private def begins(body: Body, first: Int, second: Int) =
    body.bytes.length >= 2 && (body.bytes(0) & 0xff) == first && (body.bytes(1) & 0xff) == second

  /** All that can be decoded, up to the limits on size and ratio. */
  private def inflate(body: Body, stream: => InputStream, limits: Limits): Body = {
    val out = new ByteArrayOutputStream(
      math.max(1 << 12, math.min(4L * body.bytes.length, limits.maxRecordBytes.toLong).toInt)
    )
    val buffer = new Array[Byte](1 << 14)
    try {
      val in = stream
      try {
        var count = in.read(buffer)
        while (count > 0) {
          if (out.size.toLong + count > limits.maxRecordBytes)
            return Body(null, s"the decoded body is over maxRecordBytes = ${limits.maxRecordBytes}")
          out.write(buffer, 0, count)
          Member.checkRatio(body.bytes.length.toLong, out.size.toLong, limits, "body")
          count = in.read(buffer)
        }
        Body(out.toByteArray, null)
      } finally in.close()
    } catch {
      case _: EOFException   => Body(out.toByteArray, "the coded body is cut")
      case bad: ZipException => Body(out.toByteArray, s"the coded body is damaged: ${bad.getMessage}")
      case bad: IOException  => Body(out.toByteArray, s"the coded body is damaged: ${bad.getMessage}")
      case bad: BadMember    => Body(null, bad.reason)
    }
  }
}
