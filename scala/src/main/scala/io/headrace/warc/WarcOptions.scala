package io.headrace.warc

import scala.jdk.CollectionConverters._

import org.apache.spark.sql.util.CaseInsensitiveStringMap

/**
 * The options of `spark.read.format("warc")`; docs/warc.md says what each does.
 *
 * @throws IllegalArgumentException an unknown option, or a value that is none
 */
final case class WarcOptions(
    limits: Limits = Limits(),
    strict: Boolean = false,
    verifyDigests: Boolean = true,
    body: Boolean = false,
    types: Set[String] = Set.empty,
    splitBytes: Long = 0,
    partitionBytes: Long = 0,
    recursive: Boolean = false,
    root: Option[String] = None
)

object WarcOptions {
  private val Known = Seq(
    "path",
    "paths",
    "mode",
    "maxRecordBytes",
    "maxHeaderBytes",
    "maxRatio",
    "verifyDigests",
    "body",
    "types",
    "splitBytes",
    "splitLookback",
    "partitionBytes",
    "recursive",
    "manifest",
    "root"
  )

  def of(settings: CaseInsensitiveStringMap): WarcOptions = {
    refuseUnknown(settings)
    val limits                                                                           = Limits()
    def size(name: String, default: Long, least: Long, most: Long = Long.MaxValue): Long =
      Option(settings.get(name)).fold(default)(bytes(name, _, least, most))
    WarcOptions(
      limits = Limits(
        maxRecordBytes = size("maxRecordBytes", limits.maxRecordBytes.toLong, 1, 1 << 30).toInt,
        maxHeaderBytes = size("maxHeaderBytes", limits.maxHeaderBytes.toLong, 64, 16 << 20).toInt,
        maxRatio = size("maxRatio", limits.maxRatio.toLong, 1, Int.MaxValue.toLong).toInt,
        lookback = size("splitLookback", limits.lookback, 0)
      ),
      strict = isStrict(settings.getOrDefault("mode", "permissive")),
      verifyDigests = settings.getBoolean("verifyDigests", true),
      body = settings.getBoolean("body", false),
      types = settings.getOrDefault("types", "").split(',').map(_.trim).filter(_.nonEmpty).toSet,
      splitBytes = size("splitBytes", 0, 0),
      partitionBytes = size("partitionBytes", 0, 0),
      recursive = settings.getBoolean("recursive", false),
      root = Option(settings.get("root"))
    )
  }

  /** A number of bytes: 1048576, 1024k, 1m. */
  def bytes(name: String, text: String, least: Long, most: Long): Long = {
    val (digits, unit) = text.trim.toLowerCase(java.util.Locale.ROOT).span(_.isDigit)
    val shift = Map("" -> 0, "k" -> 10, "kb" -> 10, "m" -> 20, "mb" -> 20, "g" -> 30, "gb" -> 30).get(unit.trim)
    val value = if (digits.isEmpty || digits.length > 15) None else shift.map(digits.toLong << _)
    value
      .filter(v => v >= least && v <= most)
      .getOrElse(
        throw new IllegalArgumentException(s"warc: option $name = '$text' is no size of $least to $most bytes")
      )
  }

  private def isStrict(mode: String): Boolean = mode.toLowerCase(java.util.Locale.ROOT) match {
    case "permissive"          => false
    case "strict" | "failfast" => true
    case _ => throw new IllegalArgumentException(s"warc: option mode = '$mode' is neither permissive nor strict")
  }

  private def refuseUnknown(settings: CaseInsensitiveStringMap): Unit =
    settings.keySet.asScala.find(key => !key.startsWith("__") && !Known.exists(_.equalsIgnoreCase(key))).foreach {
      key =>
        throw new IllegalArgumentException(s"warc: unknown option '$key'; there are ${Known.mkString(", ")}")
    }
}
