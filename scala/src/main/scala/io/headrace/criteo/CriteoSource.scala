package io.headrace.criteo

import java.util.{EnumSet => JEnumSet, Map => JMap, Set => JSet}

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.connector.catalog.{SupportsRead, Table, TableCapability, TableProvider}
import org.apache.spark.sql.connector.expressions.{Expressions, SortDirection, SortOrder, Transform}
import org.apache.spark.sql.connector.read._
import org.apache.spark.sql.sources.DataSourceRegister
import org.apache.spark.sql.types._
import org.apache.spark.sql.util.CaseInsensitiveStringMap
import org.apache.spark.sql.vectorized.ColumnarBatch

/** The columns of good and of refused lines. */
object Schemas {
  val Features: Array[String] =
    ((1 to LineFormat.Ints).map(n => s"i$n") ++ (1 to LineFormat.Categories).map(n => s"c$n")).toArray

  val Accepted: StructType = Features.foldLeft(
    new StructType()
      .add("key", LongType, nullable = false)
      .add("day", IntegerType, nullable = false)
      .add("label", IntegerType)
  )((schema, name) => schema.add(name, LongType))

  val Rejected: StructType = new StructType()
    .add("file", StringType, nullable = false)
    .add("file_ordinal", IntegerType, nullable = false)
    .add("line", LongType, nullable = false)
    .add("offset", LongType, nullable = false)
    .add("raw", BinaryType, nullable = false)
    .add("raw_length", LongType, nullable = false)
    .add("reason", StringType, nullable = false)
}

/**
 * `spark.read.format("criteo")`: the lines of Criteo files by the ranges of a scan.
 *
 * Options: `plan`, see [[ReadPlan]]; `part`, `accepted` (default) or `rejected`. The driver's scan and the ledger around
 * it are `headrace.ingest.criteo`.
 */
final class CriteoSource extends TableProvider with DataSourceRegister {
  override def shortName(): String = "criteo"

  override def inferSchema(options: CaseInsensitiveStringMap): StructType =
    options.getOrDefault("part", "accepted") match {
      case "accepted" => Schemas.Accepted
      case "rejected" => Schemas.Rejected
      case other      => throw new IllegalArgumentException(s"part is accepted or rejected, not $other")
    }

  override def getTable(schema: StructType, partitioning: Array[Transform], properties: JMap[String, String]): Table = {
    val options = new CaseInsensitiveStringMap(properties)
    val plan    = Option(options.get("plan")).getOrElse {
      throw new IllegalArgumentException("format criteo needs a plan: read through headrace.ingest.criteo.read_lines")
    }
    new CriteoTable(inferSchema(options), ReadPlan.fromJson(plan))
  }
}

private final class CriteoTable(all: StructType, plan: ReadPlan) extends Table with SupportsRead {
  override def name(): String                                                 = s"criteo (${plan.tasks.length} tasks)"
  override def schema(): StructType                                           = all
  override def capabilities(): JSet[TableCapability]                          = JEnumSet.of(TableCapability.BATCH_READ)
  override def newScanBuilder(options: CaseInsensitiveStringMap): ScanBuilder = new CriteoScan(all, plan)
}

/** Reads the wanted columns only, and tells that rows come by day and key: a writer by day need not sort. */
private final class CriteoScan(all: StructType, plan: ReadPlan)
    extends ScanBuilder
    with SupportsPushDownRequiredColumns
    with Scan
    with Batch
    with SupportsReportOrdering {
  private var wanted = all

  override def pruneColumns(required: StructType): Unit =
    wanted = StructType(required.fieldNames.map(all(_)))

  override def build(): Scan                                 = this
  override def toBatch: Batch                                = this
  override def readSchema(): StructType                      = wanted
  override def description(): String                         = s"criteo, ${plan.tasks.length} tasks"
  override def planInputPartitions(): Array[InputPartition]  = plan.tasks.toArray
  override def createReaderFactory(): PartitionReaderFactory = new LineBatchesFactory(plan.format, all, wanted)

  override def outputOrdering(): Array[SortOrder] = {
    val names = if (plan.ordered) Seq("day", "key").takeWhile(wanted.fieldNames.contains) else Nil
    names.map(name => Expressions.sort(Expressions.column(name), SortDirection.ASCENDING)).toArray
  }
}

private final class LineBatchesFactory(format: LineFormat, all: StructType, wanted: StructType)
    extends PartitionReaderFactory {
  override def supportColumnarReads(partition: InputPartition): Boolean = true

  override def createReader(partition: InputPartition): PartitionReader[InternalRow] =
    throw new UnsupportedOperationException("batches only")

  override def createColumnarReader(partition: InputPartition): PartitionReader[ColumnarBatch] = partition match {
    case task: ReadTask if all.fieldNames.contains("reason") => new RejectedLines(task, format, wanted)
    case task: ReadTask                                      => new AcceptedLines(task, format, wanted)
    case other => throw new IllegalArgumentException(s"not a task of this source: $other")
  }
}
