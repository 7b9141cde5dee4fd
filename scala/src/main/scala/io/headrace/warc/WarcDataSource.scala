package io.headrace.warc

import java.util

import scala.jdk.CollectionConverters._

import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.connector.catalog.{SupportsRead, Table, TableCapability, TableProvider}
import org.apache.spark.sql.connector.expressions.Transform
import org.apache.spark.sql.connector.read._
import org.apache.spark.sql.sources.{DataSourceRegister, Filter}
import org.apache.spark.sql.types.StructType
import org.apache.spark.sql.util.CaseInsensitiveStringMap
import org.apache.spark.util.SerializableConfiguration

/**
 * `spark.read.format("warc")`: WARC, WET, WAT and ARC files, one row a record, and one a stretch of bad bytes.
 *
 * The schema is `Schema`, the options are `WarcOptions`; docs/warc.md explains both.
 */
final class WarcDataSource extends TableProvider with DataSourceRegister {

  override def shortName(): String = "warc"

  override def inferSchema(options: CaseInsensitiveStringMap): StructType = Schema.of(WarcOptions.of(options))

  override def getTable(
      schema: StructType,
      partitioning: Array[Transform],
      properties: util.Map[String, String]
  ): Table = new WarcTable(schema)
}

private final class WarcTable(columns: StructType) extends Table with SupportsRead {

  override def name(): String = "warc"

  override def schema(): StructType = columns

  override def capabilities(): util.Set[TableCapability] = Set(TableCapability.BATCH_READ).asJava

  override def newScanBuilder(options: CaseInsensitiveStringMap): ScanBuilder = new WarcScanBuilder(columns, options)
}

private final class WarcScanBuilder(all: StructType, settings: CaseInsensitiveStringMap)
    extends ScanBuilder
    with SupportsPushDownFilters
    with SupportsPushDownRequiredColumns {
  private var columns = all
  private var pushed  = Array.empty[Filter]

  override def pushFilters(filters: Array[Filter]): Array[Filter] = {
    val (ours, rest) = filters.partition(TypeFilter.isOurs)
    pushed = ours
    rest
  }

  override def pushedFilters(): Array[Filter] = pushed

  override def pruneColumns(required: StructType): Unit = columns = required

  override def build(): Scan = new WarcScan(columns, TypeFilter(pushed.toSeq), settings)
}

private final class WarcScan(columns: StructType, filter: TypeFilter, settings: CaseInsensitiveStringMap)
    extends Scan
    with Batch {
  private val options = WarcOptions.of(settings)
  private val spark   = SparkSession.active
  private val conf    = spark.sparkContext.hadoopConfiguration

  override def readSchema(): StructType = columns

  override def description(): String =
    s"warc ${Paths.asked(settings).mkString("[", ", ", "]").take(200)} PushedFilters: [${filter.filters.mkString(", ")}]"

  override def toBatch: Batch = this

  override def planInputPartitions(): Array[InputPartition] =
    Option(settings.get("manifest")) match {
      case Some(manifest) => Paths.files(conf, Seq(manifest), recursive = true).map(Lookups(_)).toArray
      case None           =>
        val files = Paths.files(conf, Paths.asked(settings), options.recursive)
        Slices.plan(files, options, spark.sparkContext.defaultParallelism).toArray
    }

  override def createReaderFactory(): PartitionReaderFactory =
    new WarcReaderFactory(columns, filter, options, new SerializableConfiguration(conf))
}
