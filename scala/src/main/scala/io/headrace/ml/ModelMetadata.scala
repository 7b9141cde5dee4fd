package io.headrace.ml

import scala.jdk.CollectionConverters._

import com.fasterxml.jackson.databind.{JsonNode, ObjectMapper}
import org.apache.spark.ml.Model
import org.apache.spark.ml.param.{ParamPair, Params}
import org.apache.spark.sql.SparkSession

/** A model's `metadata` as all of spark.ml keep it, without spark.ml's private writer. */
private object ModelMetadata {
  private val json = new ObjectMapper

  def save(model: Model[_], path: String, spark: SparkSession): Unit = {
    import spark.implicits._
    spark.createDataset(Seq(text(model, spark.version))).coalesce(1).write.text(path + "/metadata")
  }

  def read(path: String, spark: SparkSession): JsonNode = {
    import spark.implicits._
    json.readTree(spark.read.text(path + "/metadata").as[String].head())
  }

  /** Give a model the parameters it was saved with. */
  def restore(kept: JsonNode, model: Params): Unit =
    kept.required("paramMap").fields.asScala.foreach { entry =>
      val param = model.getParam(entry.getKey)
      model.set(param, param.jsonDecode(json.writeValueAsString(entry.getValue)))
    }

  private def text(model: Model[_], version: String): String = {
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
