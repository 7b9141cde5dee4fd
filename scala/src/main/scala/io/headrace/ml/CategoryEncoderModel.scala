package io.headrace.ml

import org.apache.spark.broadcast.Broadcast
import org.apache.spark.ml.Model
import org.apache.spark.ml.param.ParamMap
import org.apache.spark.ml.util.{MLReadable, MLReader, MLWritable, MLWriter}
import org.apache.spark.sql.{Column, DataFrame, Dataset, SparkSession}
import org.apache.spark.sql.functions._
import org.apache.spark.sql.types.StructType

import io.headrace.functions.Functions

/**
 * Ids for categories, all columns in one pass over the rows, made by [[CategoryEncoder]].
 *
 * {{{
 * vocabulary  1 where missing, the value's id, or 2 where the vocabulary does not have it
 * hash        1 where missing, else 3 + xxhash64(value) mod size
 * modulo      1 where missing, else 3 + value mod size
 * }}}
 *
 * Every worker holds the vocabulary once ([[LongIndex]]). Of one that is larger than `maxBroadcast` it holds the most
 * frequent entries; cells that these do not resolve are joined with the rest, a value's cells spread over `salts` parts
 * by their row's key, and come back by that key: no task gets more than a part of any value's rows.
 *
 * @param head
 *   index by column, in the order of `inputCols`
 * @param tail
 *   `number`, `value`, `id` of the other entries
 */
final class CategoryEncoderModel private[ml] (
    override val uid: String,
    private[ml] val head: Array[LongIndex],
    private[ml] val tail: Option[DataFrame]
) extends Model[CategoryEncoderModel]
    with CategoryParams
    with MLWritable {
  import CategoryEncoderModel._

  private var shared: Broadcast[Array[LongIndex]] = _

  /** Entries over all columns that every worker holds. */
  def headSize: Long = head.map(_.size.toLong).sum

  override def transformSchema(schema: StructType): StructType = encodedSchema(schema)

  override def transform(dataset: Dataset[_]): DataFrame = {
    transformSchema(dataset.schema)
    tail match {
      case None       => encode(dataset.toDF(), $(outputCols), Categories.Unknown)
      case Some(rest) => encodeWith(rest, dataset.toDF())
    }
  }

  override def copy(extra: ParamMap): CategoryEncoderModel =
    copyValues(new CategoryEncoderModel(uid, head, tail), extra).setParent(parent)

  override def write: MLWriter = new CategoryEncoderStore.Writer(this)

  /** Drop the copies on the workers; they come back if rows are transformed again. */
  def release(): Unit = synchronized {
    if (shared != null) shared.destroy()
    shared = null
  }

  private def broadcasted(spark: SparkSession): Broadcast[Array[LongIndex]] = synchronized {
    if (shared == null) shared = spark.sparkContext.broadcast(head)
    shared
  }

  private def encode(rows: DataFrame, names: Array[String], other: Int): DataFrame = {
    val index   = broadcasted(rows.sparkSession)
    val columns = $(inputCols).indices.map(at => names(at) -> idColumn(rows.sparkSession, at, index, other)).toMap
    rows.withColumns(columns)
  }

  private def idColumn(spark: SparkSession, at: Int, index: Broadcast[Array[LongIndex]], other: Int): Column = {
    val value  = col($(inputCols)(at))
    val size   = lit(hashSizeOf(at))
    val number = kindOf(at) match {
      case "hash"   => Functions.call(spark, "hash_bucket", value, size)
      case "modulo" => Functions.call(spark, "bucket", value, size)
      case _        => udf(new Lookup(index, at, other)).apply(value)
    }
    coalesce(number, lit(Categories.Missing))
  }

  private def encodeWith(rest: DataFrame, rows: DataFrame): DataFrame = {
    require(isDefined(rowKeyCol), s"the vocabulary is larger than maxBroadcast ${$(maxBroadcast)}: set rowKeyCol")
    val inner  = $(outputCols).map(name => s"_id_$name")
    val marked = encode(rows, inner, Pending)
    val found  = resolved(marked, inner, rest)
    val joined = marked.join(found, marked($(rowKeyCol)) === found("_key"), "left")
    val ids    = $(outputCols).indices.map { at =>
      val late = coalesce(element_at(col("_late"), at), lit(Categories.Unknown))
      $(outputCols)(at) -> when(col(inner(at)) === Pending, late).otherwise(col(inner(at)))
    }
    joined.withColumns(ids.toMap).drop(inner.toSeq ++ Seq("_key", "_late"): _*)
  }

  /** Rows' keys with the ids, by number of column, of their cells that are in the rest of the vocabulary. */
  private def resolved(marked: DataFrame, ids: Array[String], rest: DataFrame): DataFrame = {
    val cells = ids.indices.map { at =>
      when(col(ids(at)) === Pending, struct(lit(at).as("number"), col($(inputCols)(at)).as("value")))
    }
    val salt = pmod(xxhash64(col($(rowKeyCol))), lit($(salts).toLong)).as("salt")
    val open = marked
      .select(col($(rowKeyCol)).as("_key"), salt, explode(array_compact(array(cells: _*))).as("cell"))
      .select(col("_key"), col("salt"), col("cell.number").as("number"), col("cell.value").as("value"))
    val spread = rest.withColumn("salt", explode(sequence(lit(0L), lit($(salts) - 1L))))
    open
      .join(spread, Seq("number", "value", "salt"))
      .groupBy("_key")
      .agg(map_from_entries(collect_list(struct(col("number"), col("id")))).as("_late"))
  }
}

object CategoryEncoderModel extends MLReadable[CategoryEncoderModel] {
  private val Pending = -1

  override def read: MLReader[CategoryEncoderModel]     = new CategoryEncoderStore.Reader
  override def load(path: String): CategoryEncoderModel = super.load(path)

  /** A model without vocabulary. */
  private[ml] def empty(uid: String, columns: Int): CategoryEncoderModel =
    new CategoryEncoderModel(uid, Array.fill(columns)(LongIndex.empty), None)

  /** A model of a vocabulary of `column`, `value`, `id` (and `count`, where not all of it is broadcast). */
  private[ml] def of(uid: String, known: DataFrame, columns: Array[String], limit: Int): CategoryEncoderModel = {
    val number   = array_position(typedLit(columns.toSeq), col("column")).cast("int") - 1
    val numbered = known.withColumn("number", number)
    val size     = numbered.count()
    if (size <= limit) new CategoryEncoderModel(uid, indexes(numbered, columns.length), None)
    else {
      val least = cutoff(numbered, limit)
      val head  = indexes(numbered.where(col("count") > least), columns.length)
      new CategoryEncoderModel(uid, head, Some(numbered.where(col("count") <= least).select("number", "value", "id")))
    }
  }

  /** The count that fewer than `limit` entries exceed. */
  private def cutoff(known: DataFrame, limit: Int): Long = {
    val byCount       = known.groupBy("count").agg(count(lit(1)).as("entries")).orderBy(col("count").desc)
    var (held, least) = (0L, Long.MaxValue)
    val counts        = byCount.toLocalIterator()
    while (counts.hasNext && held <= limit) {
      val next = counts.next()
      least = next.getLong(0)
      held += next.getLong(1)
    }
    least
  }

  /** One index a column; entries come to the driver in flat arrays, 12 bytes each. */
  private[ml] def indexes(known: DataFrame, columns: Int): Array[LongIndex] = {
    import known.sparkSession.implicits._
    val chunks = known
      .select("number", "value", "id")
      .as[(Int, Long, Int)]
      .mapPartitions(Chunks.of(_, 1 << 20))
      .collect()
    Array.tabulate(columns) { column =>
      val mine = chunks.filter(_._1 == column)
      LongIndex.of(mine.flatMap(_._2), mine.flatMap(_._3))
    }
  }
}

/** The id of a value in one column's index. */
private final class Lookup(index: Broadcast[Array[LongIndex]], column: Int, other: Int)
    extends (java.lang.Long => java.lang.Integer)
    with Serializable {
  @transient private lazy val known = index.value(column)

  override def apply(value: java.lang.Long): java.lang.Integer =
    if (value == null) null else Integer.valueOf(known.idOf(value, other))
}

private object Chunks {

  /** Entries of one column after another in flat arrays of at most `limit`. */
  def of(entries: Iterator[(Int, Long, Int)], limit: Int): Iterator[(Int, Array[Long], Array[Int])] =
    entries.grouped(limit).flatMap { group =>
      group.groupBy(_._1).map { case (column, mine) => (column, mine.map(_._2).toArray, mine.map(_._3).toArray) }
    }
}
