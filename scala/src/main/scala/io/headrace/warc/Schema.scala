package io.headrace.warc

import org.apache.spark.sql.types._

/** The columns of the data source: their order here is the order of the table. */
object Schema {
  private val headers = ArrayType(
    StructType(
      Seq(StructField("name", StringType, nullable = false), StructField("value", StringType, nullable = false))
    ),
    containsNull = false
  )

  val Always: StructType = StructType(
    Seq(
      StructField("file", StringType, nullable = false),
      StructField("offset", LongType, nullable = false),
      StructField("length", LongType, nullable = false),
      StructField("type", StringType),
      StructField("record_id", StringType),
      StructField("date", TimestampType),
      StructField("target_uri", StringType),
      StructField("warc_headers", headers),
      StructField("content_type", StringType),
      StructField("http_status", IntegerType),
      StructField("http_headers", headers),
      StructField("http_content_type", StringType),
      StructField("payload_digest", StringType),
      StructField("block_digest", StringType),
      StructField("digest_ok", BooleanType),
      StructField("payload", BinaryType),
      StructField("payload_length", LongType),
      StructField("truncated", StringType),
      StructField("error", StringType),
      StructField("member_offset", LongType, nullable = false)
    )
  )

  /** The body without its codings costs a copy: it is there on demand. */
  val OnDemand: StructType = StructType(Seq(StructField("body", BinaryType), StructField("body_error", StringType)))

  def of(options: WarcOptions): StructType = if (options.body) StructType(Always ++ OnDemand) else Always
}
