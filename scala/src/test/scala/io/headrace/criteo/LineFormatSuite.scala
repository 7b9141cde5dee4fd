package io.headrace.criteo

import java.nio.file.Paths
import java.util.HexFormat

import scala.jdk.CollectionConverters._
import scala.util.Random

import com.fasterxml.jackson.databind.{JsonNode, ObjectMapper}
import org.scalatest.funsuite.AnyFunSuite

/** Keeps the values of one row; -1 marks a missing label. */
class OneRow extends RowCells {
  val values: Array[Option[Long]]                              = Array.fill(1 + LineFormat.Columns)(None)
  override def label(row: Int, value: Int): Unit               = values(0) = Some(value.toLong)
  override def noLabel(row: Int): Unit                         = values(0) = None
  override def value(row: Int, column: Int, value: Long): Unit = values(column + 1) = Some(value)
  override def missing(row: Int, column: Int): Unit            = values(column + 1) = None
}

class LineFormatSuite extends AnyFunSuite {
  private val golden =
    new ObjectMapper().readTree(Paths.get("tests/golden/criteo_lines.json").toFile).get("lines").elements.asScala.toList

  private def parsed(line: Array[Byte], format: LineFormat, first: Boolean): Option[Seq[Option[Long]]] = {
    val row  = new OneRow
    val mark = if (first) LineFormat.markLength(line, 0, line.length) else 0
    val good = line.length <= format.maxLineBytes && format.parse(line, mark, line.length, 0, row)
    if (good) Some(row.values.toSeq) else None
  }

  test("golden lines have their values and reasons") {
    assert(golden.size > 100)
    for (each <- golden) {
      val line   = HexFormat.of.parseHex(each.get("line").asText)
      val format = LineFormat(each.get("labelled").asBoolean, 400, 64)
      val first  = each.get("first").asBoolean
      assert(parsed(line, format, first) == values(each.get("values")), each)
      assert(Option(format.reason(line, first)) == Option(each.get("reason").textValue), each)
    }
  }

  private def values(node: JsonNode): Option[Seq[Option[Long]]] =
    if (node.isNull) None
    else Some(node.elements.asScala.map(cell => if (cell.isNull) None else Some(cell.asLong)).toSeq)

  test("a line is refused with a reason or accepted, whatever bytes it holds") {
    val random = new Random(1)
    val whole  = HexFormat.of.parseHex(golden.head.get("line").asText)
    val format = LineFormat(labelled = true, 1 << 20, 64)
    for (_ <- 1 to 20000) {
      val line = whole.clone
      for (_ <- 0 to random.nextInt(3)) line(random.nextInt(line.length)) = random.nextInt(256).toByte
      if (!line.contains('\n'.toByte))
        assert(parsed(line, format, first = false).isEmpty == (format.reason(line, first = false) != null))
    }
  }
}
