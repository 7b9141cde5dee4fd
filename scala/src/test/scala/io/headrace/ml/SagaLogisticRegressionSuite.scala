package io.headrace.ml

import java.nio.file.{Files, Paths}
import java.util.concurrent.atomic.AtomicLong

import scala.jdk.CollectionConverters._

import com.fasterxml.jackson.databind.{JsonNode, ObjectMapper}
import org.apache.spark.ml.{Pipeline, PipelineModel}
import org.apache.spark.ml.classification.LogisticRegression
import org.apache.spark.ml.linalg.{Matrices, Vector, Vectors}
import org.apache.spark.scheduler.{SparkListener, SparkListenerTaskEnd}
import org.apache.spark.sql.{DataFrame, SparkSession}
import org.apache.spark.sql.functions.col
import org.scalatest.BeforeAndAfterAll
import org.scalatest.concurrent.Eventually.{eventually, timeout}
import org.scalatest.funsuite.AnyFunSuite
import org.scalatest.time.{Seconds, Span}

import io.headrace.ml.saga._

class SagaLogisticRegressionSuite extends AnyFunSuite with BeforeAndAfterAll {
  private lazy val spark = {
    val made = SparkSession
      .builder()
      .master("local[2]")
      .config("spark.ui.enabled", "false")
      .config("spark.sql.shuffle.partitions", "2")
      .getOrCreate()
    made.sparkContext.setLogLevel("WARN") // a fit is some hundred jobs
    made
  }

  override def afterAll(): Unit = spark.stop()

  private type Rows = Seq[(Double, Double, Vector)]

  private def generated(classes: Int, count: Int = 200): Rows =
    GeneratedRows.rows(count, 8, classes, seed = 4).map(row => (row.label, row.weight, Vectors.dense(row.x)))

  private def frame(rows: Rows, parts: Int): DataFrame =
    spark.createDataFrame(spark.sparkContext.parallelize(rows, parts)).toDF("label", "weight", "features")

  private def estimator: SagaLogisticRegression =
    new SagaLogisticRegression().setWeightCol("weight").setRegParam(0.01).setTol(1e-8).setMaxIter(2000)

  /** The same problem's. */
  private def mllib: LogisticRegression =
    new LogisticRegression().setWeightCol("weight").setRegParam(0.01).setTol(1e-13).setMaxIter(1000)

  private def near(a: Vector, b: Vector, by: Double): Boolean =
    a.size == b.size && a.toArray.zip(b.toArray).forall { case (x, y) => math.abs(x - y) <= by * (1 + math.abs(y)) }

  test("coefficients are MLlib's, with and without standardization, two classes and three, with thresholds") {
    val settings = Seq((2, true, true), (2, false, false), (3, true, true))
    for ((classes, standardization, intercept) <- settings) {
      val rows = frame(generated(classes), 3)
      val ours = estimator.setStandardization(standardization).setFitIntercept(intercept).fit(rows)
      val lib  = mllib.setStandardization(standardization).setFitIntercept(intercept).fit(rows)
      val told = s"$classes classes, standardization $standardization, intercept $intercept"
      assert(ours.summary.ended == "gap" || ours.summary.ended == "rounding", told)
      assert(
        near(Vectors.dense(ours.coefficientMatrix.toArray), Vectors.dense(lib.coefficientMatrix.toArray), 1e-3),
        told
      )
      assert(near(ours.interceptVector, lib.interceptVector, 1e-3), told)
      val limits = Array.tabulate(classes)(k => 0.2 + 0.3 * k)
      val both   = ours
        .setThresholds(limits)
        .setPredictionCol("p")
        .setRawPredictionCol("r")
        .setProbabilityCol("q")
        .transform(lib.setThresholds(limits).transform(rows))
      for (row <- both.select("rawPrediction", "r", "probability", "q").collect()) {
        assert(near(row.getAs[Vector](1), row.getAs[Vector](0), 1e-2), told)
        assert(near(row.getAs[Vector](3), row.getAs[Vector](2), 1e-3), told)
      }
      assert(both.where(col("p") =!= col("prediction")).count() <= 1, told)
    }
  }

  test("golden vectors") {
    val golden = new ObjectMapper().readTree(Paths.get("tests/golden/linear_models.json").toFile)
    def numbers(node: JsonNode): Array[Double] = node.elements.asScala.map(_.asDouble).toArray
    for (one <- golden.get("models").elements.asScala) {
      val features = golden.get("features").elements.asScala.map(each => Vectors.dense(numbers(each))).toSeq
      val labels   = numbers(golden.get(one.get("labels").asText))
      val weights  = numbers(golden.get("weight"))
      val rows     = frame(labels.indices.map(at => (labels(at), weights(at), features(at))), 2)
      val model    = estimator
        .setLoss(one.get("loss").asText)
        .setRegParam(one.get("reg_param").asDouble)
        .setElasticNetParam(one.get("elastic_net_param").asDouble)
        .setStandardization(one.get("standardization").asBoolean)
        .setNumPartitions(1)
        .setLocalPasses(50)
        .fit(rows)
      val told = one.toString.take(120)
      assert(math.abs(model.summary.objective / one.get("objective").asDouble - 1) < 1e-8, told)
      assert(
        near(
          Vectors.dense(model.coefficientMatrix.rowIter.flatMap(_.toArray).toArray),
          Vectors.dense(numbers(one.get("coefficients"))),
          1e-3
        ),
        told
      )
      assert(near(model.interceptVector, Vectors.dense(numbers(one.get("intercepts"))), 1e-3), told)
    }
  }

  test(
    "dense and sparse vectors, any partitions, dealt or as they come: one minimum; the same fit twice: the same bits"
  ) {
    val rows   = generated(2).sortBy(_._1)
    val sparse = rows.map { case (label, weight, x) => (label, weight, x.toSparse: Vector) }
    val first  = estimator.fit(frame(rows, 1)).summary
    for ((parts, shuffle) <- Seq((2, true), (4, false), (16, true))) {
      val how   = estimator.setShuffle(shuffle).setTol(1e-6)
      val model = how.fit(frame(rows, parts))
      assert(model.summary.bound <= first.objective, s"$parts $shuffle")
      assert(model.summary.objective <= first.objective * (1 + 1e-6), s"$parts $shuffle")
      if (parts < 16) assert(how.fit(frame(sparse, parts)).coefficients == model.coefficients, s"$parts $shuffle")
    }
    assert(estimator.setNumPartitions(3).fit(frame(rows, 16).union(frame(Nil, 2))).summary.converged)
  }

  test("squared and squared hinge losses predict what they mean") {
    val numbers = frame(generated(1), 2)
    val ridge   = estimator.setLoss("squared").fit(numbers)
    val row     = ridge.transform(numbers).select("features", "prediction").head()
    val dot     = row.getAs[Vector](0).toArray.zip(ridge.coefficients.toArray).map(two => two._1 * two._2).sum
    assert(math.abs(row.getDouble(1) - dot - ridge.intercept) < 1e-12)
    assert(ridge.transform(numbers).columns.toSeq == Seq("label", "weight", "features", "prediction"))
    val none = estimator.setLoss("squared").fit(frame(generated(1).map(_.copy(_1 = 0.0)), 2)).summary
    assert(none.objective == 0.0 && none.relativeGap == 0.0 && none.converged)
    val machine = estimator.setLoss("squared_hinge").fit(frame(generated(2), 2)).transform(frame(generated(2), 2))
    assert(machine.columns.drop(3).toSeq == Seq("rawPrediction", "prediction"))
    assert(machine.where(col("prediction") === col("label")).count() > 130) // of 200 noisy labels
  }

  test("kept and read back, in a pipeline too; copies keep where to start") {
    val rows   = frame(generated(3), 2)
    val folder = Files.createTempDirectory("saga").toString
    val model  =
      new Pipeline().setStages(Array(estimator.setSolver("svrg").setThresholds(Array(0.1, 0.2, 0.3)))).fit(rows)
    model.write.overwrite().save(folder)
    val again = PipelineModel.load(folder)
    assert(again.transform(rows).collect().toSeq == model.transform(rows).collect().toSeq)
    val inner = again.stages(0).asInstanceOf[SagaLogisticRegressionModel]
    assert(inner.getSolver == "svrg" && !inner.hasSummary && inner.numClasses == 3)
    estimator.setTol(0.5).write.overwrite().save(folder)
    assert(SagaLogisticRegression.load(folder).getTol == 0.5)
    val warm = estimator.setThresholds(Array(0.1, 0.2, 0.3)).setInitialModel(inner)
    assert(warm.copy(warm.extractParamMap()).fit(rows).summary.rounds.length <= 3)
  }

  test("a class of threshold 0 is predicted but where its probability is 0, as in MLlib") {
    val limits = Some(Array(0.0, 1.0))
    val scorer = new SagaScorer(Matrices.dense(1, 1, Array(1.0)), Vectors.dense(0.0), 2, limits)
    assert(scorer.prediction(Vectors.dense(30.0), probabilities = true) == 0.0)
    assert(scorer.prediction(Vectors.dense(1000.0), probabilities = true) == 1.0) // exp(-1000) is no number
  }

  test("parameters are checked") {
    def refused(set: SagaLogisticRegression => Any): Unit =
      intercept[IllegalArgumentException](set(new SagaLogisticRegression()))
    refused(_.setSolver("lbfgs"))
    refused(_.setLoss("hinge"))
    refused(_.setFamily("poisson"))
    refused(_.setConvergence("hope"))
    refused(_.setStepSize("1"))
    refused(_.setRegParam(-1))
    refused(_.setElasticNetParam(1.1))
    refused(_.setLocalPasses(-1))
    refused(_.setNumPartitions(-1))
    refused(_.setTol(-1))
  }

  test("rows that no model can be learnt from are refused with their column and what is wrong") {
    val good = generated(2)
    def says(rows: Rows, words: String*)(how: SagaLogisticRegression => SagaLogisticRegression = identity): Unit = {
      val error = intercept[IllegalArgumentException](how(estimator).fit(frame(rows, 3)))
      for (word <- words) assert(error.getMessage.contains(word), error.getMessage)
    }
    val one = good.head._3
    says(good :+ ((0.5, 1.0, one)), "column label", "0.5")()
    says(good :+ ((-1.0, 1.0, one)), "column label", "-1")()
    says(good :+ ((Double.NaN, 1.0, one)), "column label", "NaN")()
    says(good :+ ((3.0, 1.0, one)), "column label", "no row of class 2")()
    says(good :+ ((1e5, 1.0, one)), "column label", "100000 classes")()
    says(good :+ ((2.0, 1.0, one)), "column label", "3 classes")(_.setFamily("binomial"))
    says(good.filter(_._1 == 0), "column label", "one class only")()
    says(good :+ ((1.0, -1.0, one)), "column weight", "-1")()
    says(good :+ ((1.0, Double.NaN, one)), "column weight", "NaN")()
    says(good :+ ((1.0, 1.0, Vectors.sparse(8, Array(3), Array(Double.NaN)))), "column features", "NaN at feature 3")()
    says(
      good :+ ((1.0, 1.0, Vectors.dense(one.toArray.updated(7, Double.PositiveInfinity)))),
      "Infinity at feature 7"
    )()
    says(good :+ ((1.0, 1.0, Vectors.dense(1.0))), "column features", "8", "1")()
    says(good :+ ((1.0, 1.0, Vectors.dense(one.toArray.updated(7, 1e300)))), "column features", "squares")(
      _.setStandardization(false)
    )
    says(good :+ ((1.0, 1.0, Vectors.dense(one.toArray.updated(7, 1e160)))), "column features", "at feature 7")()
    says(
      Seq((0.0, 1.0, Vectors.sparse(1 << 30, Array(3), Array(1.0))), (1.0, 1.0, Vectors.sparse(1 << 30, Nil))),
      "array"
    )()
    says(Nil, "no rows")()
    says(good.map(row => (row._1, 0.0, row._3)), "no rows")()
    says(good, "thresholds has 3")(_.setThresholds(Array(0.1, 0.2, 0.3)))
    for (loss <- Seq("squared_hinge", "squared"))
      says(good, "thresholds", s"the loss $loss")(_.setLoss(loss).setThresholds(Array(0.9, 0.1)))
    val rows = frame(good, 2)
    assert(
      intercept[IllegalArgumentException](estimator.fit(rows.drop("label"))).getMessage.contains("no column label")
    )
    assert(
      intercept[IllegalArgumentException](estimator.setFeaturesCol("weight").fit(rows)).getMessage
        .contains("not a vector")
    )
    assert(
      intercept[IllegalArgumentException](estimator.setPredictionCol("label").fit(rows)).getMessage
        .contains("is there already")
    )
    assert(
      intercept[IllegalArgumentException](estimator.setPredictionCol("p").setProbabilityCol("p").fit(rows)).getMessage
        .contains("p is asked for twice")
    )
  }

  test("a feature far from zero, such as a year, takes no more epochs: the intercept stands in for its center") {
    for (classes <- Seq(2, 3)) {
      val years = generated(classes).zipWithIndex.map { case ((label, weight, x), at) =>
        (label, weight, Vectors.dense(x.toArray.updated(2, 2010.0 + at % 11)))
      }
      val rows = frame(years, 2)
      val ours = estimator.setMaxIter(300).fit(rows)
      val lib  = mllib.fit(rows)
      assert(ours.summary.ended == "gap", ours.summary.certificate)
      val both = Seq(ours.coefficientMatrix, lib.coefficientMatrix).map(each => Vectors.dense(each.toArray))
      assert(near(both(0), both(1), 1e-3), s"$classes classes")
      val p = ours.setPredictionCol("p").setRawPredictionCol("r").setProbabilityCol("q").transform(lib.transform(rows))
      for (row <- p.select("probability", "q").collect()) assert(near(row.getAs[Vector](1), row.getAs[Vector](0), 1e-3))
      assert(estimator.setInitialModel(ours).fit(rows).summary.rounds.length <= 3, s"$classes classes")
    }
  }

  test("moments are those of plain sums, also of rare, centered and weighted features, and so are the powers of two") {
    val rows = GeneratedRows.rows(60, 8, 2, seed = 14).map { row =>
      row.copy(x = row.x.updated(0, 1e5 + row.x(0)).updated(3, 0.0).updated(4, 7.0))
    }
    val blocks  = spark.sparkContext.parallelize(GeneratedRows.split(rows, 3, sorted = true), 3)
    val moments = Moments.of(blocks, 8)
    val weight  = rows.map(_.weight).sum
    for (at <- 0 until 8) {
      def mean(of: Double => Double): Double = rows.map(row => row.weight * of(row.x(at))).sum / weight
      val center                             = if (at == 0 || at == 6) mean(identity) else 0.0 // no row lacks them
      def near(a: Double, b: Double) = assert(math.abs(a - b) <= 1e-9 * (math.abs(a) + math.abs(b)), s"feature $at")
      near(moments.center(at), center)
      near(moments.present(at), mean(x => if (x == 0) 0.0 else 1.0))
      near(moments.spread(at), mean(x => (x - center) * (x - center)))
      if (at == 3 || at == 4) assert(moments.deviation(at) == 0)
      for (standardization <- Seq(true, false); intercept <- Seq(true, false)) {
        val scale = ModelScale.of(moments, standardization, intercept)
        val off   = if (intercept) center else 0.0
        val moved = mean(x => math.pow((x - off) * scale.factor(at), 2))
        if (at == 3 || at == 4) assert(scale.factor(at) == 0)
        else assert(moved > moments.present(at) / 2 && moved < 2, s"feature $at $standardization $intercept")
        if (at == 0) assert(moved < 2 && moved > 0.5)
      }
    }
  }

  test("features of unlike sizes are fitted as they are, to MLlib's minimum; proved where the penalty feels them") {
    for ((sizes, proved) <- Seq(Seq(1.0, 1e-3, 1.0, 50.0) -> true, Seq(1.0, 1e-6, 1e4, 1e9) -> false)) {
      val rows = frame(
        generated(2).map { case (label, weight, x) =>
          (label, weight, Vectors.dense(Array.tabulate(x.size)(at => x(at) * sizes(at % sizes.length))))
        },
        2
      )
      val ours = estimator.setStandardization(false).setTol(1e-6).setMaxIter(300).fit(rows).summary
      val lib  = mllib.setMaxIter(200).setStandardization(false).fit(rows).summary
      assert(ours.objective <= lib.objectiveHistory.last * (1 + 1e-6), ours.certificate)
      assert(!proved || ours.ended == "gap", ours.certificate)
    }
  }

  test("a constant feature has coefficient 0, with a warning; rows of weight zero count for nothing") {
    val rows = generated(2).map { case (label, weight, x) => (label, weight, Vectors.dense(x.toArray.updated(2, 0.1))) }
    val model = estimator.fit(frame(rows ++ rows.take(20).map(row => (1 - row._1, 0.0, row._3)), 2))
    assert(model.coefficients(2) == 0.0 && model.summary.warnings.exists(_.contains("1 constant features")))
    assert(near(model.coefficients, estimator.fit(frame(rows, 2)).coefficients, 1e-4))
  }

  test("the driver gets one vector where classes are many: an evaluation sends their number squared") {
    val (classes, parts) = (300, 16)
    val problem          = Problem(SoftmaxLoss(classes), Penalty(0, 0.1), Shape(1, classes, intercept = true))
    val shards           = spark.sparkContext.parallelize(0 until parts, parts).map { part =>
      val builder = new CsrBuilder
      for (label <- 0 until classes) {
        builder.feature(0, label.toDouble)
        builder.row(label.toDouble, 1.0)
      }
      Shard.of(part, builder.result(), Shape(1, classes, intercept = true))
    }
    val sent     = new AtomicLong
    val listener = new SparkListener {
      override def onTaskEnd(end: SparkListenerTaskEnd): Unit = sent.addAndGet(end.taskMetrics.resultSize)
    }
    val lies = new RddShards(shards.cache(), problem)
    spark.sparkContext.addSparkListener(listener)
    try {
      lies.evaluate(new Array[Double](problem.shape.length), Batch.Whole).release()
      eventually(timeout(Span(30, Seconds)))(assert(sent.get >= 8L * classes * classes))
      Thread.sleep(500) // whatever else there is
      assert(sent.get < 2 * 8L * classes * classes)
    } finally {
      spark.sparkContext.removeSparkListener(listener)
      shards.unpersist()
    }
  }

  test("a large sum goes over groups of neighbours, in the order of partitions") {
    val length = 1 << 17
    val parts  = spark.sparkContext.parallelize(0 until 11, 11).mapPartitionsWithIndex { (at, _) =>
      if (at == 4) Iterator.empty else Iterator(Array.tabulate(length)(i => 1.0 / (at + 3) + i))
    }
    val runs = Seq.fill(2)(OrderedSum.of(parts, length)(Anchor.add).get)
    assert(runs(0).sameElements(runs(1)))
    val plain = (0 until 11).filter(_ != 4).map(at => 1.0 / (at + 3)).sum
    assert(math.abs(runs(0)(0) - plain) < 1e-14)
  }
}
