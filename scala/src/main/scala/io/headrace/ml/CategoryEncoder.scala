package io.headrace.ml

import org.apache.spark.ml.Estimator
import org.apache.spark.ml.param._
import org.apache.spark.ml.util.{DefaultParamsReadable, DefaultParamsWritable, Identifiable}
import org.apache.spark.sql.{DataFrame, Dataset}
import org.apache.spark.sql.expressions.Window
import org.apache.spark.sql.functions._
import org.apache.spark.sql.types.StructType

/**
 * Learns ids of categories, all columns in one pass.
 *
 * A value that stands `minCounts` times enters its column's vocabulary; ids are 3, 4, ... by count descending, then
 * value ascending. 0 is padding, 1 a missing cell, 2 a value out of vocabulary. Hashed columns learn nothing. Counting
 * sums up within each task first: a value that fills half the table crosses the network once a task.
 *
 * `fitOn` = `vocabulary` takes a vocabulary that is kept elsewhere instead: rows of `column`, `value`, `id` and, if it is
 * larger than `maxBroadcast`, `count`.
 */
final class CategoryEncoder(override val uid: String)
    extends Estimator[CategoryEncoderModel]
    with CategoryParams
    with DefaultParamsWritable {

  def this() = this(Identifiable.randomUID("categoryEncoder"))

  /** How often a value must stand; one for all columns, or one for each. */
  val minCounts: IntArrayParam = new IntArrayParam(
    this,
    "minCounts",
    "how often a value must stand to enter, for all columns or for each (> 0)",
    (given: Array[Int]) => given.nonEmpty && given.forall(_ > 0)
  )

  /** What `fit` is given: `rows`, or a `vocabulary`. */
  val fitOn: Param[String] =
    new Param[String](this, "fitOn", "rows or vocabulary", ParamValidators.inArray(Array("rows", "vocabulary")))

  setDefault(minCounts -> Array(1), fitOn -> "rows")

  def setInputCols(value: Array[String]): this.type  = set(inputCols, value)
  def setOutputCols(value: Array[String]): this.type = set(outputCols, value)
  def setKinds(value: Array[String]): this.type      = set(kinds, value)
  def setHashSizes(value: Array[Int]): this.type     = set(hashSizes, value)
  def setMinCounts(value: Array[Int]): this.type     = set(minCounts, value)
  def setMaxBroadcast(value: Int): this.type         = set(maxBroadcast, value)
  def setRowKeyCol(value: String): this.type         = set(rowKeyCol, value)
  def setSalts(value: Int): this.type                = set(salts, value)
  def setFitOn(value: String): this.type             = set(fitOn, value)

  override def fit(dataset: Dataset[_]): CategoryEncoderModel = {
    val learning = $(inputCols).indices.filter(kindOf(_) == "vocabulary")
    val model    =
      if (learning.isEmpty) CategoryEncoderModel.empty(uid, $(inputCols).length)
      else {
        val known = if ($(fitOn) == "rows") learned(dataset, learning) else dataset.toDF()
        val used  = known.where(col("column").isin(learning.map($(inputCols)(_)): _*))
        CategoryEncoderModel.of(uid, used, $(inputCols), $(maxBroadcast))
      }
    copyValues(model.setParent(this))
  }

  override def transformSchema(schema: StructType): StructType = encodedSchema(schema)
  override def copy(extra: ParamMap): CategoryEncoder          = defaultCopy(extra)

  private def learned(rows: Dataset[_], columns: Seq[Int]): DataFrame = {
    encodedSchema(rows.schema)
    val names  = $(inputCols)
    val pairs  = columns.map(at => struct(lit(at).as("number"), col(names(at)).as("value")))
    val counts = rows
      .select(explode(array(pairs: _*)).as("cell"))
      .where(col("cell.value").isNotNull)
      .groupBy(col("cell.number").as("number"), col("cell.value").as("value"))
      .agg(count(lit(1)).as("count"))
    val limits   = typedLit(names.indices.map(each($(minCounts), "minCounts", _)))
    val frequent = counts.where(col("count") >= element_at(limits, col("number") + 1))
    val order    = Window.partitionBy("number").orderBy(col("count").desc, col("value"))
    frequent.select(
      element_at(typedLit(names.toSeq), col("number") + 1).as("column"),
      col("value"),
      (row_number().over(order) + Categories.Unknown).as("id"),
      col("count")
    )
  }
}

object CategoryEncoder extends DefaultParamsReadable[CategoryEncoder] {
  override def load(path: String): CategoryEncoder = super.load(path)
}
