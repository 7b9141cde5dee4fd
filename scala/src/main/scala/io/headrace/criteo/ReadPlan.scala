package io.headrace.criteo

import java.nio.charset.StandardCharsets.UTF_8

import com.fasterxml.jackson.databind.{JsonNode, ObjectMapper}
import org.apache.spark.sql.connector.read.InputPartition

import scala.jdk.CollectionConverters._

/** A scanned file's place in the tables; its rows get `ordinal << 40 | line` as key, and its day. */
final case class InputFile(path: String, ordinal: Int, day: Int, header: Boolean, gzip: Boolean)

/** Whole lines of a file: bytes [start, end) of what it holds, the first line's number, and the bytes' CRC-32. */
final case class Piece(file: InputFile, start: Long, end: Long, firstLine: Long, crc32: Long)

/** What one task reads, in order. */
final case class ReadTask(pieces: Seq[Piece]) extends InputPartition

/**
 * What the driver asks for, from its scan of the files: tasks over ranges.
 *
 * As JSON: `labelled`, `max_line_bytes`, `raw_bytes`; `files`, each [path, ordinal, day, header, gzip]; `tasks`, each a
 * list of [place in `files`, start, end, first line, crc32].
 */
final case class ReadPlan(format: LineFormat, tasks: Seq[ReadTask]) {

  /** Whether every task gives its rows by ascending day and key. */
  def ordered: Boolean = tasks.forall { task =>
    task.pieces.zip(task.pieces.drop(1)).forall { case (a, b) =>
      a.file.day <= b.file.day && ReadPlan.key(a) < ReadPlan.key(b)
    }
  }
}

object ReadPlan {
  val LineBits = 40

  /** The key of a piece's first line. */
  def key(piece: Piece): Long = (piece.file.ordinal.toLong << LineBits) + piece.firstLine

  def fromJson(text: String): ReadPlan = {
    val root   = new ObjectMapper().readTree(text.getBytes(UTF_8))
    val files  = items(root.required("files")).map(file).toIndexedSeq
    val format =
      LineFormat(
        root.required("labelled").asBoolean,
        root.required("max_line_bytes").asInt,
        root.required("raw_bytes").asInt
      )
    val tasks = items(root.required("tasks")).map(task => ReadTask(items(task).map(piece(_, files)).toVector))
    ReadPlan(format, tasks.toVector)
  }

  private def file(node: JsonNode): InputFile =
    InputFile(
      node.get(0).asText,
      node.get(1).asInt,
      node.get(2).asInt,
      node.get(3).asBoolean,
      node.get(4).asBoolean
    )

  private def piece(node: JsonNode, files: IndexedSeq[InputFile]): Piece =
    Piece(files(node.get(0).asInt), node.get(1).asLong, node.get(2).asLong, node.get(3).asLong, node.get(4).asLong)

  private def items(node: JsonNode): Iterator[JsonNode] = node.elements.asScala
}
