package io.headrace.warc

import java.io.FileNotFoundException

import scala.collection.mutable

import com.fasterxml.jackson.databind.ObjectMapper
import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FileStatus, FileSystem, Path}
import org.apache.spark.sql.connector.read.InputPartition
import org.apache.spark.sql.util.CaseInsensitiveStringMap

/** A file to read, and how long it is. */
final case class InputFile(path: String, size: Long)

/** The files that a reader's paths mean: files, folders, patterns, of any Hadoop file system. */
private object Paths {

  /** What `load(...)` was given. */
  def asked(options: CaseInsensitiveStringMap): Seq[String] = {
    val many = Option(options.get("paths")).toSeq.flatMap(new ObjectMapper().readValue(_, classOf[Array[String]]))
    many ++ Option(options.get("path"))
  }

  /**
   * The files in the order in which the paths were given, by name within each, each once.
   *
   * @throws FileNotFoundException a path means no file
   */
  def files(conf: Configuration, paths: Seq[String], recursive: Boolean): Seq[InputFile] = {
    if (paths.isEmpty) throw new IllegalArgumentException("warc: no path was given: load(path, ...)")
    paths.flatMap { text =>
      val path  = new Path(text)
      val fs    = path.getFileSystem(conf)
      val found =
        matching(fs, path).flatMap(status => if (status.isDirectory) within(fs, status, recursive) else Seq(status))
      if (found.isEmpty) throw new FileNotFoundException(s"warc: $text: there is no such file")
      found.map(status => InputFile(status.getPath.toString, status.getLen)).sortBy(_.path)
    }.distinct
  }

  /** A name that is there means itself, whatever characters it holds. */
  private def matching(fs: FileSystem, path: Path): Seq[FileStatus] =
    try Seq(fs.getFileStatus(path))
    catch { case _: FileNotFoundException => Option(fs.globStatus(path)).toSeq.flatten }

  private def within(fs: FileSystem, folder: FileStatus, recursive: Boolean): Seq[FileStatus] = {
    val found = mutable.ArrayBuffer.empty[FileStatus]
    fs.listStatus(folder.getPath).filterNot(status => "._".contains(status.getPath.getName.head)).foreach { status =>
      if (status.isFile) found += status else if (recursive) found ++= within(fs, status, recursive)
    }
    found.toSeq
  }
}

/** A part of a file that one task reads: the records that begin in `from until until`. */
final case class Slice(file: InputFile, from: Long, until: Long)

/** What one task reads. */
final case class Slices(slices: Seq[Slice]) extends InputPartition

private object Slices {
  private val Largest  = 128L << 20
  private val Smallest = 4L << 20

  /**
   * Slices in the order of the files, neighbours together in a partition as long as they are small.
   *
   * Deterministic for the same files, options and number of cores.
   */
  def plan(files: Seq[InputFile], options: WarcOptions, cores: Int): Seq[Slices] = {
    val even   = files.map(_.size).sum / math.max(1, cores)
    val target = if (options.partitionBytes > 0) options.partitionBytes else math.max(Smallest, math.min(Largest, even))
    val plan   = mutable.ArrayBuffer.empty[Slices]
    val open   = mutable.ArrayBuffer.empty[Slice]
    var bytes  = 0L
    def close(): Unit = if (open.nonEmpty) {
      plan += Slices(open.toSeq)
      open.clear()
      bytes = 0
    }
    files.flatMap(split(_, options.splitBytes)).foreach { slice =>
      val size = slice.until - slice.from
      if (bytes + size > target) close()
      open += slice
      bytes += size
    }
    close()
    plan.toSeq
  }

  private def split(file: InputFile, bytes: Long): Seq[Slice] =
    if (bytes <= 0 || file.size <= bytes) Seq(Slice(file, 0, file.size))
    else {
      val starts = Iterator.iterate(0L)(_ + bytes).takeWhile(_ < file.size).toSeq
      starts.map(from => Slice(file, from, math.min(from + bytes, file.size)))
    }
}

/** A manifest's part: lines of file, offset and length of single records, with tabs between. */
final case class Lookups(manifest: InputFile) extends InputPartition
