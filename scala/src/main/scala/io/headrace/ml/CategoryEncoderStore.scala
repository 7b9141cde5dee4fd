package io.headrace.ml

import org.apache.hadoop.fs.Path
import org.apache.spark.ml.util.{MLReader, MLWriter}

/** A [[CategoryEncoderModel]] in a folder: `metadata` as all of spark.ml keep it, `head` and `tail` as Parquet. */
private object CategoryEncoderStore {
  final class Writer(model: CategoryEncoderModel) extends MLWriter {
    override protected def saveImpl(path: String): Unit = {
      val spark = sparkSession
      import spark.implicits._
      val entries = model.head.toSeq.zipWithIndex.flatMap { case (index, number) =>
        index.entries.grouped(1 << 20).map(group => (number, group.map(_._1).toArray, group.map(_._2).toArray))
      }
      ModelMetadata.save(model, path, spark)
      spark.createDataset(entries).toDF("number", "value", "id").write.parquet(path + "/head")
      model.tail.foreach(_.write.parquet(path + "/tail"))
    }
  }

  final class Reader extends MLReader[CategoryEncoderModel] {
    override def load(path: String): CategoryEncoderModel = {
      val spark = sparkSession
      import spark.implicits._
      val kept   = ModelMetadata.read(path, spark)
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
      ModelMetadata.restore(kept, model)
      model
    }
  }
}
