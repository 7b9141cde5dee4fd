package io.headrace.warc

import java.util.Arrays

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.GenericInternalRow
import org.apache.spark.sql.catalyst.util.GenericArrayData
import org.apache.spark.sql.types.StructType
import org.apache.spark.unsafe.types.UTF8String

/**
 * Makes rows of records: only what the columns asked for need is parsed, decoded or digested.
 *
 * A row is good until the next is made: its strings and headers lie in the reader's buffers.
 */
final class Rows(file: String, columns: StructType, options: WarcOptions) {
  private val fileName  = UTF8String.fromString(file)
  private val makers    = columns.fieldNames.map(maker)
  private val needsHttp = columns.fieldNames.exists(Rows.OfHttp)
  private val http      = new Http
  private val digests   = new Digests
  private val warcLines = new HeaderArray
  private val httpLines = new HeaderArray
  private var isHttp    = false
  private var body      = 0
  private var decoded   = null: Body
  private var copied    = null: Array[Byte]

  /** Whether a record's block is needed at all. */
  val needsBlock: Boolean = columns.fieldNames.exists(Rows.OfBlock)

  /** Whether a record of that type becomes more than its place and type. */
  def isWanted(kind: Text): Boolean = options.types.isEmpty || kind != null && options.types.contains(kind.toString)

  def row(record: Record): InternalRow = {
    val kind   = record.recordType
    val whole  = isWanted(kind) || !record.isIntact
    val values = new Array[Any](makers.length)
    decoded = null
    copied = null
    if (whole && needsHttp) readHttp(record)
    var i = 0
    while (i < makers.length) {
      if (whole || Rows.OfPlace(columns(i).name)) values(i) = makers(i)(record)
      i += 1
    }
    new GenericInternalRow(values)
  }

  private def readHttp(record: Record): Unit = {
    isHttp = record.isHttp
    body = record.blockStart
    if (isHttp) {
      http.read(record.buffer, record.blockStart, record.blockEnd, options.limits.maxHeaderBytes)
      body = http.bodyStart
    }
  }

  private def maker(column: String): Record => Any = column match {
    case "file"              => _ => fileName
    case "offset"            => _.offset
    case "length"            => _.length
    case "member_offset"     => _.memberOffset
    case "type"              => record => utf8(record.recordType)
    case "record_id"         => record => utf8(record.declared(Names.RecordId))
    case "date"              => record => date(record).fold(null: Any)(identity)
    case "target_uri"        => record => utf8(record.targetUri)
    case "warc_headers"      => warcHeaders
    case "content_type"      => record => utf8(record.contentType)
    case "http_status"       => _ => if (isHttp && http.status >= 0) http.status else null
    case "http_headers"      => _ => if (isHttp) httpLines.of(http.head) else null
    case "http_content_type" => _ => if (isHttp) http.head.value(Names.ContentType).fold(null: Any)(utf8) else null
    case "payload_digest"    => record => utf8(record.declared(Names.PayloadDigest))
    case "block_digest"      => record => utf8(record.declared(Names.BlockDigest))
    case "digest_ok"      => record => if (options.verifyDigests) digestOk(record).fold(null: Any)(identity) else null
    case "payload"        => record => if (record.kept) payload(record) else null
    case "payload_length" => record => if (record.kept) (record.blockEnd - body).toLong else null
    case "truncated"      => record => utf8(record.declared(Names.Truncated))
    case "error"          => record => if (record.isIntact) null else UTF8String.fromString(record.error)
    case "body"           => record => decode(record).bytes
    case "body_error"     => record => utf8(decode(record).error)
  }

  private def date(record: Record): Option[Long] =
    if (record.arc != null) Dates.arc(record.arc.date)
    else Option(record.declared(Names.Date)).flatMap(Dates.warc)

  private def warcHeaders(record: Record): Any =
    if (record.arc != null) {
      val line  = record.arc
      val pairs = Seq(
        "URL"            -> line.url,
        "IP-address"     -> line.ip,
        "Archive-date"   -> line.date,
        "Content-type"   -> line.contentType,
        "Archive-length" -> line.length.toString
      )
      new GenericArrayData(
        pairs
          .map { case (name, value) =>
            InternalRow(UTF8String.fromString(name), UTF8String.fromString(value))
          }
          .toArray[Any]
      )
    } else if (record.head.count == 0) null
    else warcLines.of(record.head)

  /**
   * Whether the declared digests hold that can be checked; None if there is none.
   *
   * A payload digest is that of the body as stored or without its chunks: both are in use. That of a revisit or of a
   * part of a segmented record is of bytes that are not here.
   */
  private def digestOk(record: Record): Option[Boolean] =
    if (!record.kept) None
    else {
      val ofBlock   = Option(record.declared(Names.BlockDigest))
      val block     = ofBlock.flatMap(digests.holds(_, record.buffer, record.blockStart, record.blockEnd))
      val elsewhere = Option(record.recordType).exists(kind => Rows.Elsewhere(kind.toString))
      val ofPayload = if (elsewhere) None else Option(record.declared(Names.PayloadDigest))
      val payload   =
        if (body == record.blockStart && ofPayload.exists(text => ofBlock.exists(_.isSame(text)))) block
        else ofPayload.flatMap(payloadHolds(record, _))
      if (block.contains(false) || payload.contains(false)) Some(false) else block.orElse(payload)
    }

  private def payloadHolds(record: Record, declared: Text): Option[Boolean] = {
    val stored = digests.holds(declared, record.buffer, body, record.blockEnd)
    if (!stored.contains(false) || !isHttp || !http.isChunked) stored
    else
      Body.dechunk(record.buffer, body, record.blockEnd).fold(stored)(b => digests.holds(declared, b, 0, b.length))
  }

  private def decode(record: Record): Body = {
    if (decoded == null)
      decoded =
        if (!record.kept) Body(null, null)
        else if (isHttp && http.isCoded) Body.of(http, record.buffer, body, record.blockEnd, options.limits)
        else Body(payload(record), null)
    decoded
  }

  /** One array for both columns where the body is the payload: then comparing them is nothing. */
  private def payload(record: Record): Array[Byte] = {
    if (copied == null) copied = Arrays.copyOfRange(record.buffer, body, record.blockEnd)
    copied
  }

  private def utf8(text: String): UTF8String = if (text == null) null else UTF8String.fromString(text)

  private def utf8(text: Text): UTF8String = if (text == null) null else text.utf8
}

private object Rows {

  /** Columns that every record has, whatever its type. */
  val OfPlace: Set[String] = Set("file", "offset", "length", "member_offset", "type", "error")

  /** Columns that need a record's block. */
  val OfBlock: Set[String] = Set(
    "http_status",
    "http_headers",
    "http_content_type",
    "digest_ok",
    "payload",
    "payload_length",
    "body",
    "body_error"
  )

  val OfHttp: Set[String] = OfBlock

  /** Types whose payload digest is of bytes in another record. */
  val Elsewhere: Set[String] = Set("revisit", "continuation")
}
