package io.headrace.warc

import org.apache.spark.sql.sources._

/**
 * A condition on `type` and `error` that is decided before a record becomes a row, with SQL's logic of three values.
 *
 * @param types  the value of `type` -> whether the condition holds, None for unknown
 */
final case class TypeFilter(filters: Seq[Filter]) {

  def accepts(recordType: String, isIntact: Boolean): Boolean =
    filters.forall(TypeFilter.eval(_, recordType, isIntact).contains(true))
}

object TypeFilter {

  /** Whether a filter is about nothing but types and whether there is an error. */
  def isOurs(filter: Filter): Boolean = filter match {
    case EqualTo("type", _: String) | EqualNullSafe("type", _) => true
    case In("type", values) => values.forall(v => v == null || v.isInstanceOf[String])
    case IsNull("type" | "error") | IsNotNull("type" | "error") => true
    case And(left, right)                                       => isOurs(left) && isOurs(right)
    case Or(left, right)                                        => isOurs(left) && isOurs(right)
    case Not(inner)                                             => isOurs(inner)
    case _                                                      => false
  }

  private def eval(filter: Filter, kind: String, intact: Boolean): Option[Boolean] = filter match {
    case EqualTo(_, value)       => Option(kind).map(_ == value)
    case EqualNullSafe(_, null)  => Some(kind == null)
    case EqualNullSafe(_, value) => Some(kind == value)
    case In(_, values)           =>
      if (kind == null) None
      else if (values.contains(kind)) Some(true)
      else if (values.contains(null)) None
      else Some(false)
    case IsNull("error")    => Some(intact)
    case IsNotNull("error") => Some(!intact)
    case IsNull(_)          => Some(kind == null)
    case IsNotNull(_)       => Some(kind != null)
    case And(left, right)   => and(eval(left, kind, intact), eval(right, kind, intact))
    case Or(left, right)    => and(eval(left, kind, intact).map(!_), eval(right, kind, intact).map(!_)).map(!_)
    case Not(inner)         => eval(inner, kind, intact).map(!_)
    case other              => throw new IllegalArgumentException(other.toString)
  }

  private def and(left: Option[Boolean], right: Option[Boolean]): Option[Boolean] =
    if (left.contains(false) || right.contains(false)) Some(false)
    else if (left.isEmpty || right.isEmpty) None
    else Some(true)
}
