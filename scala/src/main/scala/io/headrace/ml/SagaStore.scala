package io.headrace.ml

import org.apache.spark.ml.linalg.{Matrix, Vector}
import org.apache.spark.ml.util.{MLReader, MLWriter}

/** A [[SagaLogisticRegressionModel]] in a folder: `metadata`, and `data`, one row of Parquet. */
private object SagaStore {
  final class Writer(model: SagaLogisticRegressionModel) extends MLWriter {
    override protected def saveImpl(path: String): Unit = {
      val spark = sparkSession
      ModelMetadata.save(model, path, spark)
      spark
        .createDataFrame(Seq((model.numClasses, model.interceptVector, model.coefficientMatrix)))
        .toDF("numClasses", "interceptVector", "coefficientMatrix")
        .coalesce(1)
        .write
        .parquet(path + "/data")
    }
  }

  final class Reader extends MLReader[SagaLogisticRegressionModel] {
    override def load(path: String): SagaLogisticRegressionModel = {
      val spark = sparkSession
      val kept  = ModelMetadata.read(path, spark)
      val data  = spark.read.parquet(path + "/data").select("numClasses", "interceptVector", "coefficientMatrix").head()
      val model = new SagaLogisticRegressionModel(
        kept.required("uid").asText,
        data.getAs[Matrix](2),
        data.getAs[Vector](1),
        data.getInt(0)
      )
      ModelMetadata.restore(kept, model)
      model
    }
  }
}
