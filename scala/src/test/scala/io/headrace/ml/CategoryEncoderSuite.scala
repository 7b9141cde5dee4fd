package io.headrace.ml

import java.nio.file.{Files, Paths}

import scala.jdk.CollectionConverters._

import com.fasterxml.jackson.databind.ObjectMapper
import org.apache.spark.ml.Pipeline
import org.apache.spark.ml.PipelineModel
import org.apache.spark.sql.SparkSession
import org.scalatest.BeforeAndAfterAll
import org.scalatest.funsuite.AnyFunSuite

class CategoryEncoderSuite extends AnyFunSuite with BeforeAndAfterAll {
  private lazy val spark = SparkSession
    .builder()
    .master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.sql.shuffle.partitions", "2")
    .getOrCreate()

  override def afterAll(): Unit = spark.stop()

  test("hashes are those of the golden vectors") {
    import spark.implicits._
    val golden  = new ObjectMapper().readTree(Paths.get("tests/golden/xxhash64_long.json").toFile)
    val values  = golden.get("value").elements.asScala.map(_.asLong).toSeq
    val rows    = values.toDF("a").repartition(1)
    val encoder =
      new CategoryEncoder()
        .setInputCols(Array("a"))
        .setOutputCols(Array("h"))
        .setKinds(Array("hash"))
        .setHashSizes(Array(1000))
    val found    = encoder.fit(rows).transform(rows).select("a", "h").as[(Long, Int)].collect().toMap
    val expected = golden.get("bucket_of_1000").elements.asScala.map(_.asInt + Categories.FirstId).toSeq
    assert(values.map(found) == expected)
  }

  test("ids by count, then value; in a pipeline that is kept and read back") {
    import spark.implicits._
    val cells   = Seq[Option[Long]](Some(7), Some(7), Some(-1), Some(5), Some(5), None, Some(9))
    val rows    = cells.zipWithIndex.toDF("a", "key")
    val encoder = new CategoryEncoder().setInputCols(Array("a")).setOutputCols(Array("id")).setMinCounts(Array(2))
    val model   = new Pipeline().setStages(Array(encoder)).fit(rows)
    val folder  = Files.createTempDirectory("encoder").toString
    model.write.overwrite().save(folder)
    for (each <- Seq(model, PipelineModel.load(folder)))
      assert(each.transform(rows).orderBy("key").select("id").as[Int].collect().toSeq == Seq(4, 4, 2, 3, 3, 1, 2))
    assert(encoder.transformSchema(rows.schema)("id").dataType.simpleString == "int")
  }

  test("parameters are checked") {
    assertThrows[IllegalArgumentException](new CategoryEncoder().setKinds(Array("onehot")))
    assertThrows[IllegalArgumentException](new CategoryEncoder().setMinCounts(Array(0)))
    assertThrows[IllegalArgumentException](new CategoryEncoder().setHashSizes(Array(Int.MaxValue)))
    assertThrows[IllegalArgumentException](new CategoryEncoder().setMaxBroadcast(-1))
    assertThrows[IllegalArgumentException](new CategoryEncoder().setFitOn("hearsay"))
  }
}
