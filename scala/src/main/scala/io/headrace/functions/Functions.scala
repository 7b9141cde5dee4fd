package io.headrace.functions

import org.apache.spark.sql.{Column, SparkSession}
import org.apache.spark.sql.catalyst.analysis.NoSuchFunctionException
import org.apache.spark.sql.connector.catalog.{FunctionCatalog, Identifier}
import org.apache.spark.sql.connector.catalog.functions.{BoundFunction, ScalarFunction, UnboundFunction}
import org.apache.spark.sql.functions.call_function
import org.apache.spark.sql.types.{ByteType, DataType, IntegerType, LongType, ShortType, StructType}
import org.apache.spark.sql.util.CaseInsensitiveStringMap

/**
 * Functions of a cell, as a catalog of Spark's: `headrace_functions.signed_log(x)` in SQL, or by [[Functions.call]].
 *
 * Each is one static method that Spark's generated code calls: a few bytes of code a column and nothing boxed, so that a
 * stage over 40 columns stays one method that HotSpot compiles (its limit is 8,000 bytes).
 */
final class Functions extends FunctionCatalog {
  private var catalog = Functions.Catalog

  override def initialize(name: String, options: CaseInsensitiveStringMap): Unit = catalog = name
  override def name(): String                                                    = catalog

  override def listFunctions(namespace: Array[String]): Array[Identifier] =
    if (namespace.isEmpty) Functions.all.map(each => Identifier.of(namespace, each.name())).toArray else Array.empty

  override def loadFunction(wanted: Identifier): UnboundFunction =
    Functions.all
      .find(each => wanted.namespace.isEmpty && each.name() == wanted.name)
      .getOrElse(throw new NoSuchFunctionException(wanted))
}

object Functions {

  /** The catalog's name in every session. */
  val Catalog = "headrace_functions"

  private val all: Seq[Unbound] = Seq(new SignedLog, new Bucket, new HashBucket).map(new Unbound(_))

  /** A function's value; the session comes to know the catalog if it does not. */
  def call(spark: SparkSession, name: String, arguments: Column*): Column = {
    val setting = s"spark.sql.catalog.$Catalog"
    if (spark.conf.getOption(setting).isEmpty) spark.conf.set(setting, classOf[Functions].getName)
    call_function(s"$Catalog.$name", arguments: _*)
  }

  private val Integers: Seq[DataType] = Seq(ByteType, ShortType, IntegerType, LongType)

  /** Takes integers up to the function's own width; Spark widens them. */
  private final class Unbound(function: ScalarFunction[_]) extends UnboundFunction {
    override def name(): String        = function.name
    override def description(): String = function.toString

    override def bind(arguments: StructType): BoundFunction = {
      val types = arguments.map(_.dataType)
      val fits  = types.zip(function.inputTypes).forall { case (found, own) =>
        Integers.contains(found) && found.defaultSize <= own.defaultSize
      }
      if (!fits || types.length != function.inputTypes.length)
        throw new UnsupportedOperationException(s"$description: not of ${arguments.simpleString}")
      function
    }
  }
}
