package io.headrace.ml

import scala.jdk.CollectionConverters._

import com.fasterxml.jackson.databind.{JsonNode, ObjectMapper}
import org.apache.hadoop.fs.Path
import org.apache.spark.ml.param.ParamPair
import org.apache.spark.ml.util.{MLReader, MLWriter}

/** A [[CategoryEncoderModel]] in a folder: `metadata` as all of spark.ml keep it, `head` and `tail` as Parquet. */
private object CategoryEncoderStore {
  private val json = new ObjectMapper

  final class Writer(model: CategoryEncoderModel) extends MLWriter {
    override protected def saveImpl(path: String): Unit = {
      val spark = sparkSession
      import spark.implicits._
      val entries = model.head.toSeq.zipWithIndex.flatMap { case (index, number) =>
        index.entries.grouped(1 << 20).map(group => (number, group.map(_._1).toArray, group.map(_._2).toArray))
      }
      spark.createDataset(Seq(metadata(model, spark.version))).coalesce(1).write.text(path + "/metadata")
      spark.createDataset(entries).toDF("number", "value", "id").write.parquet(path + "/head")
      model.tail.foreach(_.write.parquet(path + "/tail"))
    }
  }

  final class Reader extends MLReader[CategoryEncoderModel] {
    override def load(path: String): CategoryEncoderModel = {
      val spark = sparkSession
      import spark.implicits._
      val kept   = json.readTree(spark.read.text(path + "/metadata").as[String].head())
      val params = kept.required("paramMap")
      val chunks = spark.read.parquet(path + "/head").as[(Int, Array[Long], Array[Int])].collect()
      val head   = Array.tabulate(params.required("inputCols").size) { number =>
        val mine = chunks.filter(_._1 == number)
        LongIndex.of(mine.flatMap(_._2), mine.flatMap(_._3))
      }
      val rest  = new Path(path, "tail")
      val files = rest.getFileSystem(spark.sparkContext.hadoopConfiguration)
      val tail  = if (files.exists(rest)) Some(spark.read.parquet(rest.toString)) else None
      val model = new CategoryEncoderModel(kept.required("uid").asText, head, tail)
      params.fields.asScala.foreach(entry => set(model, entry.getKey, entry.getValue))
      model
    }
  }

  private def set(model: CategoryEncoderModel, name: String, value: JsonNode): Unit = {
    val param = model.getParam(name)
    model.set(param, param.jsonDecode(json.writeValueAsString(value)))
  }

  private def metadata(model: CategoryEncoderModel, version: String): String = {
    val root = json.createObjectNode
    root.put("class", model.getClass.getName)
    root.put("timestamp", System.currentTimeMillis)
    root.put("sparkVersion", version)
    root.put("uid", model.uid)
    val params = root.putObject("paramMap")
    for (ParamPair(param, value) <- model.extractParamMap().toSeq)
      params.set[JsonNode](param.name, json.readTree(param.jsonEncode(value)))
    root.putObject("defaultParamMap")
    json.writeValueAsString(root)
  }
}
