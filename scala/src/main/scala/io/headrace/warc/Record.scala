package io.headrace.warc

import java.nio.charset.StandardCharsets.ISO_8859_1

/**
 * A record as read, or the bytes of a file that are none: then `error` says why.
 *
 * One object serves all records of a file: what it refers to lies in the reader's buffer until the next is read.
 */
final class Record {
  var offset: Long         = 0
  var length: Long         = 0
  var memberOffset: Long   = 0
  var error: String        = _
  val head: Head           = new Head
  var arc: RecordStart.Arc = _

  /** Whether the block is in the buffer, and where. */
  var kept: Boolean       = false
  var buffer: Array[Byte] = Array.emptyByteArray
  var blockStart: Int     = 0
  var blockEnd: Int       = 0

  def clear(): Unit = {
    error = null
    arc = null
    kept = false
    head.clear()
  }

  def isIntact: Boolean = error == null

  /** The type a WARC record declares; for ARC what it would be in a WARC file. Null where nothing is known. */
  def recordType: Text =
    if (arc == null) declared(Names.Type)
    else if (arc.url.startsWith("filedesc:")) Record.Warcinfo
    else if (isHttpUrl && startsWithHttp) Record.Response
    else Record.Resource

  def targetUri: Text =
    if (arc != null) Text.of(arc.url)
    else
      declared(Names.TargetUri) match {
        case null => null
        case uri  => uri.bare
      }

  def contentType: Text = if (arc != null) Text.of(arc.contentType) else declared(Names.ContentType)

  /** A header's value, null where there is no such header. */
  def declared(name: Array[Byte]): Text = head.find(name) match {
    case -1 => null
    case i  => head.value(i)
  }

  /** Whether the block is an HTTP message: declared so, or in an ARC record, and looking like one. */
  def isHttp: Boolean =
    kept && (if (arc != null) isHttpUrl && startsWithHttp
             else
               contentType match {
                 case null => false
                 case text => Record.isHttpType(text)
               })

  private def isHttpUrl = arc.url.startsWith("http:") || arc.url.startsWith("https:")

  private def startsWithHttp = kept && blockEnd - blockStart >= 5 &&
    new String(buffer, blockStart, 5, ISO_8859_1) == "HTTP/"
}

private object Record {
  val Warcinfo: Text = Text.of("warcinfo")
  val Response: Text = Text.of("response")
  val Resource: Text = Text.of("resource")

  private val HttpType = "application/http".getBytes(ISO_8859_1)

  /** `application/http`, whatever parameters follow. */
  def isHttpType(text: Text): Boolean = {
    val end = text.start + HttpType.length
    text.length >= HttpType.length && Text(text.bytes, text.start, end).equalsIgnoreCase(HttpType) &&
    (text.end == end || text.bytes(end) == ';' || text.bytes(end) == ' ')
  }
}

/** Header names that are looked for, in lower case. */
private[warc] object Names {
  private def of(name: String) = name.getBytes(ISO_8859_1)

  val Type: Array[Byte]             = of("warc-type")
  val RecordId: Array[Byte]         = of("warc-record-id")
  val Date: Array[Byte]             = of("warc-date")
  val TargetUri: Array[Byte]        = of("warc-target-uri")
  val PayloadDigest: Array[Byte]    = of("warc-payload-digest")
  val BlockDigest: Array[Byte]      = of("warc-block-digest")
  val Truncated: Array[Byte]        = of("warc-truncated")
  val ContentType: Array[Byte]      = of("content-type")
  val ContentLength: Array[Byte]    = of("content-length")
  val ContentEncoding: Array[Byte]  = of("content-encoding")
  val TransferEncoding: Array[Byte] = of("transfer-encoding")
}
