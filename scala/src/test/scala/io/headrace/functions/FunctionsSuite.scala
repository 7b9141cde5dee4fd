package io.headrace.functions

import org.apache.spark.sql.AnalysisException
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.functions.{col, lit}
import org.scalatest.BeforeAndAfterAll
import org.scalatest.funsuite.AnyFunSuite

class FunctionsSuite extends AnyFunSuite with BeforeAndAfterAll {
  private lazy val spark = SparkSession.builder().master("local[1]").config("spark.ui.enabled", "false").getOrCreate()

  override def afterAll(): Unit = spark.stop()

  test("the logarithm is the JDK's, from the table, beyond it and below zero") {
    val around = Seq(1L << 16, 1L << 24, 1L << 53, Long.MaxValue).flatMap(n => (n - 2 to n).toSeq ++ Seq(n / 3))
    for (x <- (0L to (1L << 17)) ++ around; sign <- Seq(1, -1)) {
      val expected = (sign * StrictMath.log1p(x.toDouble)).toFloat
      assert(SignedLog.invoke(sign * x) == expected, s"of ${sign * x}")
    }
    assert(SignedLog.invoke(Long.MinValue) == -StrictMath.log1p(math.pow(2, 63)).toFloat)
  }

  test("a bucket is the remainder that is not negative, behind the three reserved ids") {
    for (value <- Seq(0L, 1L, 6L, 7L, -1L, -7L, -8L, Long.MaxValue, Long.MinValue); size <- Seq(1, 7, 1 << 18))
      assert(Bucket.invoke(value, size) == (BigInt(value).mod(size) + 3).toInt, s"of $value, $size")
  }

  test("the hash is Spark's own") {
    import spark.implicits._
    val values   = Seq(0L, 1L, -1L, Long.MaxValue, Long.MinValue) ++ Seq.fill(1000)(scala.util.Random.nextLong())
    val expected = values.toDF("x").selectExpr("x", "xxhash64(x)").as[(Long, Long)].collect()
    for ((value, hash) <- expected) assert(HashBucket.hash(value) == hash, s"of $value")
  }

  test("columns, SQL, narrower integers, missing cells") {
    import spark.implicits._
    val rows  = Seq[Option[Long]](Some(-4), None, Some(9)).toDF("x")
    val log   = Functions.call(spark, "signed_log", col("x"))
    val found = rows.select(log.as("log"), Functions.call(spark, "bucket", col("x"), lit(7)).as("id"))
    assert(
      found.as[(Option[Float], Option[Int])].collect().toSeq ==
        Seq((Some(-math.log(5).toFloat), Some(6)), (None, None), (Some(math.log(10).toFloat), Some(5)))
    )
    assert(spark.sql(s"SELECT ${Functions.Catalog}.bucket(CAST(8 AS TINYINT), 7)").as[Int].head() == 4)
  }

  test("wrong arguments and names are refused") {
    assertThrows[AnalysisException](spark.sql(s"SELECT ${Functions.Catalog}.bucket(1)").collect())
    assertThrows[AnalysisException](spark.sql(s"SELECT ${Functions.Catalog}.signed_log('a')").collect())
    assertThrows[AnalysisException](spark.sql(s"SELECT ${Functions.Catalog}.nothing(1)").collect())
  }
}
