package io.headrace.storage

import java.lang.invoke.MethodHandles
import java.nio.{ByteBuffer, ByteOrder}
import java.nio.channels.FileChannel
import java.nio.channels.FileChannel.MapMode
import java.nio.file.{FileAlreadyExistsException, Path, Paths}
import java.nio.file.StandardOpenOption.{CREATE, READ, WRITE}

import scala.jdk.CollectionConverters._

import io.delta.storage.LogStore
import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{Path => HadoopPath}

/**
 * One of several processes that race for the versions of one Delta log.
 *
 * `java -cp ... io.headrace.storage.LogStoreRace FOLDER RACER RACERS VERSIONS [STORE CLASS]`: started once per racer;
 * all meet before each version, so that each version is a race. Prints the versions this racer was told it won, one a
 * line; the content of a version is the racer's number.
 */
object LogStoreRace {
  private val longs         = MethodHandles.byteBufferViewVarHandle(classOf[Array[Long]], ByteOrder.nativeOrder())
  private val patienceNanos = 120L * 1000 * 1000 * 1000

  def main(args: Array[String]): Unit = {
    require(args.length >= 4, "usage: LogStoreRace FOLDER RACER RACERS VERSIONS [STORE CLASS]")
    val (folder, racer, racers, versions) = (args(0), args(1).toInt, args(2).toInt, args(3).toInt)
    val conf                              = new Configuration()
    val store                             = Class
      .forName(args.applyOrElse(4, (_: Int) => classOf[HardLinkLogStore].getName))
      .getConstructor(classOf[Configuration])
      .newInstance(conf)
      .asInstanceOf[LogStore]
    val meeting = map(Paths.get(folder).resolve("meeting"), racers)
    for (version <- 0 until versions) {
      meet(meeting, racer, racers, version + 1L)
      if (commits(store, folder, version, racer.toString, conf)) println(version)
    }
  }

  private def commits(store: LogStore, folder: String, version: Int, text: String, conf: Configuration): Boolean =
    try {
      store.write(new HadoopPath(f"file:$folder/$version%020d.json"), Iterator(text).asJava, false, conf)
      true
    } catch { case _: FileAlreadyExistsException => false }

  private def map(file: Path, racers: Int): ByteBuffer = {
    val channel = FileChannel.open(file, CREATE, READ, WRITE)
    try channel.map(MapMode.READ_WRITE, 0, racers * 8L)
    finally channel.close()
  }

  /** Say "I am at `turn`" in shared memory and wait for all others to be there. */
  private def meet(meeting: ByteBuffer, racer: Int, racers: Int, turn: Long): Unit = {
    longs.setVolatile(meeting, racer * 8, turn)
    val deadline = System.nanoTime() + patienceNanos
    (0 until racers).foreach { other =>
      while ((longs.getVolatile(meeting, other * 8): Long) < turn) {
        if (System.nanoTime() > deadline) sys.error(s"racer $other did not come to version ${turn - 1}")
        Thread.`yield`()
      }
    }
  }
}
