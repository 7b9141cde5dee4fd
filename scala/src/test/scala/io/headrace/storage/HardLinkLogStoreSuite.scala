package io.headrace.storage

import java.io.FileNotFoundException
import java.nio.file.{FileAlreadyExistsException, FileSystemException, Files, Path}
import java.util.Comparator
import java.util.concurrent.{Callable, CyclicBarrier, Executors, TimeUnit}

import scala.jdk.CollectionConverters._
import scala.util.Try

import io.delta.storage.{CloseableIterator, LogStore}
import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{Path => HadoopPath}
import org.scalatest.funsuite.AnyFunSuite

/** A file system without hard links, as FAT and some FUSE mounts are. */
class LinklessLogStore(conf: Configuration) extends HardLinkLogStore(conf) {
  override protected def link(temporary: Path, target: Path): Unit =
    throw new FileSystemException(target.toString, temporary.toString, "Operation not permitted")
}

/** A network file system that makes the link, loses its own answer, and says "exists" when asked again. */
class ForgetfulLogStore(conf: Configuration) extends HardLinkLogStore(conf) {
  override protected def link(temporary: Path, target: Path): Unit = {
    super.link(temporary, target)
    throw new FileAlreadyExistsException(target.toString)
  }
}

class HardLinkLogStoreSuite extends AnyFunSuite {
  private val conf = new Configuration()

  private def withLog(test: Path => Unit): Unit = {
    val log = Files.createTempDirectory("log store ä%20")
    try test(log)
    finally Files.walk(log).sorted(Comparator.reverseOrder[Path]()).forEach(file => Files.delete(file))
  }

  private def version(log: Path, number: Int) = new HadoopPath(new HadoopPath(log.toUri), f"$number%020d.json")

  private def commit(store: LogStore, path: HadoopPath, overwrite: Boolean, lines: String*): Unit =
    store.write(path, lines.iterator.asJava, overwrite, conf)

  private def lines(store: LogStore, path: HadoopPath): Seq[String] = {
    val reader: CloseableIterator[String] = store.read(path, conf)
    try reader.asScala.toList
    finally reader.close()
  }

  private def names(log: Path): Seq[String] = {
    val files = Files.list(log)
    try files.iterator().asScala.map(_.getFileName.toString).toList.sorted
    finally files.close()
  }

  Seq(new HardLinkLogStore(conf), new LinklessLogStore(conf), new ForgetfulLogStore(conf)).foreach { store =>
    val kind = store.getClass.getSimpleName

    test(s"$kind: what is written is read, line by line, and no temporary file stays") {
      withLog { log =>
        commit(store, version(log, 0), overwrite = false, "{\"ä\":1}", "", "third")
        assert(lines(store, version(log, 0)) == Seq("{\"ä\":1}", "", "third"))
        assert(names(log).filterNot(_ == ".commit.lock") == Seq(f"${0}%020d.json"))
      }
    }

    test(s"$kind: a version is committed once; the second writer is told and changes nothing") {
      withLog { log =>
        commit(store, version(log, 0), overwrite = false, "first")
        intercept[FileAlreadyExistsException](commit(store, version(log, 0), overwrite = false, "second"))
        assert(lines(store, version(log, 0)) == Seq("first"))
      }
    }
  }

  Seq(new HardLinkLogStore(conf), new LinklessLogStore(conf)).foreach { store =>
    test(s"${store.getClass.getSimpleName}: of eight threads that race for a version exactly one wins it, 200 times") {
      withLog { log =>
        val threads                              = 8
        val start                                = new CyclicBarrier(threads)
        val pool                                 = Executors.newFixedThreadPool(threads)
        def racer(name: Int): Callable[Seq[Int]] = () =>
          (0 until 200).filter { number =>
            start.await(60, TimeUnit.SECONDS)
            Try(commit(store, version(log, number), overwrite = false, s"by $name")).fold(
              { case _: FileAlreadyExistsException => false; case other => throw other },
              _ => true
            )
          }
        try {
          val won = pool.invokeAll((0 until threads).map(racer).asJava).asScala.map(_.get()).toSeq
          assert(won.flatten.sorted == (0 until 200))
          for ((versions, name) <- won.zipWithIndex; number <- versions)
            assert(lines(store, version(log, number)) == Seq(s"by $name"))
        } finally pool.shutdownNow()
      }
    }
  }

  private val store = new HardLinkLogStore(conf)

  test("overwriting replaces the whole file, also where Hadoop left a checksum of the old bytes") {
    withLog { log =>
      val path   = version(log, 7)
      val hadoop = path.getFileSystem(conf)
      val out    = hadoop.create(path)
      out.write("old".getBytes("UTF-8"))
      out.close()
      assert(names(log).exists(_.endsWith(".crc")), "Hadoop's local file system writes checksums")
      commit(store, path, overwrite = true, "new")
      assert(lines(store, path) == Seq("new"))
    }
  }

  test("listing starts at the asked version, is sorted, and passes over what a crash left") {
    withLog { log =>
      Seq(11, 2, 9, 10).foreach(number => commit(store, version(log, number), overwrite = false, "x"))
      Files.writeString(log.resolve(f".${12}%020d.json.1b4e28ba.tmp"), "{\"add\":")
      val listed = store.listFrom(version(log, 9), conf).asScala.map(_.getPath.getName).toList
      assert(listed == Seq(9, 10, 11).map(number => f"$number%020d.json"))
    }
  }

  test("a writer that fails half way leaves neither a version nor a temporary file") {
    withLog { log =>
      val failing =
        Iterator("one", "two").map(line => if (line == "two") throw new IllegalStateException(line) else line)
      intercept[IllegalStateException](store.write(version(log, 0), failing.asJava, false, conf))
      assert(names(log).isEmpty)
    }
  }

  test("a log folder that is not there is named") {
    withLog { log =>
      val absent = new HadoopPath(new HadoopPath(log.toUri), "absent/00000000000000000000.json")
      val fault  = intercept[FileNotFoundException](commit(store, absent, overwrite = false, "x"))
      assert(fault.getMessage.contains("absent"))
    }
  }

  test("another file system is refused by name") {
    val fault =
      intercept[IllegalArgumentException](commit(store, new HadoopPath("s3a://b/0.json"), overwrite = false, "x"))
    assert(fault.getMessage.contains("s3a://b/0.json"))
  }

  test("Delta is told that its own checkpoint files would be seen half written, so that it renames them") {
    assert(store.isPartialWriteVisible(new HadoopPath("file:/x"), conf))
  }
}
