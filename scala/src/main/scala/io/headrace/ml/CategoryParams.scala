package io.headrace.ml

import org.apache.spark.ml.param._
import org.apache.spark.ml.param.shared.{HasInputCols, HasOutputCols}
import org.apache.spark.sql.types.{IntegerType, LongType, StructField, StructType}

/** What [[CategoryEncoder]] and [[CategoryEncoderModel]] are told. */
trait CategoryParams extends Params with HasInputCols with HasOutputCols {

  /** How each column becomes ids: `vocabulary`, `hash` or `modulo`; one for all columns, or one for each. */
  final val kinds: StringArrayParam = new StringArrayParam(
    this,
    "kinds",
    "vocabulary, hash or modulo, for all columns or for each",
    (given: Array[String]) => given.nonEmpty && given.forall(CategoryParams.Kinds.contains)
  )

  /** Buckets of a hashed column; one for all, or one for each. */
  final val hashSizes: IntArrayParam = new IntArrayParam(
    this,
    "hashSizes",
    "buckets of a hashed column, for all columns or for each (> 0)",
    (given: Array[Int]) => given.nonEmpty && given.forall(size => size > 0 && size <= Int.MaxValue - Categories.FirstId)
  )

  /** Entries that every worker holds (15 bytes each); of a larger vocabulary the rarest go by a join. */
  final val maxBroadcast: IntParam = new IntParam(
    this,
    "maxBroadcast",
    "entries of the vocabulary that every worker holds; the rarer rest goes by a join (>= 0)",
    ParamValidators.gtEq(0)
  )

  /** A column that tells rows apart; needed only where a join is. */
  final val rowKeyCol: Param[String] = new Param(this, "rowKeyCol", "a column that tells rows apart, for the join")

  /** Into how many parts the join spreads one value's rows. */
  final val salts: IntParam = new IntParam(
    this,
    "salts",
    "parts into which the join spreads the rows of one value (> 0)",
    ParamValidators.gt(0)
  )

  setDefault(
    kinds        -> Array("vocabulary"),
    hashSizes    -> Array(1 << 18),
    maxBroadcast -> 50000000,
    salts        -> 8
  )

  def getKinds: Array[String]  = $(kinds)
  def getHashSizes: Array[Int] = $(hashSizes)
  def getMaxBroadcast: Int     = $(maxBroadcast)
  def getRowKeyCol: String     = $(rowKeyCol)
  def getSalts: Int            = $(salts)

  private[ml] def kindOf(column: Int): String  = each($(kinds), "kinds", column)
  private[ml] def hashSizeOf(column: Int): Int = each($(hashSizes), "hashSizes", column)

  private[ml] final def each[T](values: Array[T], name: String, column: Int): T = {
    require(
      values.length == 1 || values.length == $(inputCols).length,
      s"$name has ${values.length} values for ${$(inputCols).length} columns"
    )
    values(if (values.length == 1) 0 else column)
  }

  private[ml] def encodedSchema(schema: StructType): StructType = {
    require($(inputCols).length == $(outputCols).length, "inputCols and outputCols differ in length")
    for (name <- $(inputCols))
      require(schema(name).dataType == LongType, s"column $name is ${schema(name).dataType.simpleString}, not bigint")
    val kept = schema.fields.filterNot(field => $(outputCols).contains(field.name))
    StructType(kept ++ $(outputCols).map(StructField(_, IntegerType, nullable = false)))
  }
}

private object CategoryParams {
  val Kinds: Set[String] = Set("vocabulary", "hash", "modulo")
}

/** Ids that every column has. */
object Categories {
  val Missing = 1
  val Unknown = 2
  val FirstId = 3
}
