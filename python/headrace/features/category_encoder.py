"""The JVM's category encoder for spark.ml: `io.headrace.ml.CategoryEncoder` and its model.

encoder = CategoryEncoder(inputCols=["c1", "c2"], outputCols=["id1", "id2"], minCounts=[10])
model = encoder.fit(rows)
ids = model.transform(rows)

Ids are 1 for a missing cell, 2 for a value out of vocabulary, then 3, 4, ... by count descending and value ascending;
hashed, they are 3 + xxhash64(value) mod size. Columns are bigint. Names of parameters are spark.ml's. Import the module
within functions: its classes are pyspark's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark import keyword_only
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCols, HasOutputCols
from pyspark.ml.util import JavaMLReadable, JavaMLWritable
from pyspark.ml.wrapper import JavaEstimator, JavaModel

from headrace.jvm_stage import JvmEstimator, JvmModel

_DEFAULTS = {"kinds": ["vocabulary"], "hashSizes": [1 << 18], "maxBroadcast": 50_000_000, "salts": 8}


class _CategoryParams(HasInputCols, HasOutputCols):
    """Settings of the encoder and of its model, as in `CategoryParams.scala`."""

    kinds = Param(
        Params._dummy(), "kinds", "vocabulary, hash or modulo, for all columns or each", TypeConverters.toListString
    )
    hashSizes = Param(  # noqa: N815
        Params._dummy(), "hashSizes", "buckets of a hashed column, for all or for each", TypeConverters.toListInt
    )
    maxBroadcast = Param(  # noqa: N815
        Params._dummy(), "maxBroadcast", "entries every worker holds; the rarer go by a join", TypeConverters.toInt
    )
    rowKeyCol = Param(  # noqa: N815
        Params._dummy(), "rowKeyCol", "a column that tells rows apart, for the join", TypeConverters.toString
    )
    salts = Param(Params._dummy(), "salts", "parts into which the join spreads a value's rows", TypeConverters.toInt)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(**_DEFAULTS)


class CategoryEncoderModel(
    JavaModel, _CategoryParams, JvmModel, JavaMLReadable["CategoryEncoderModel"], JavaMLWritable
):
    """Ids for categories, all columns in one pass; made by `CategoryEncoder.fit`."""

    def release(self) -> None:
        """Drop the vocabulary's copies on the workers; they come back if rows are transformed again."""
        self._call_java("release")


class CategoryEncoder(
    JavaEstimator[CategoryEncoderModel],
    _CategoryParams,
    JvmEstimator,
    JavaMLReadable["CategoryEncoder"],
    JavaMLWritable,
):
    """Learns ids of categories, all columns in one pass.

    Args:
        inputCols: bigint columns.
        outputCols: as many; may be the same, which are then replaced.
        kinds: `vocabulary`, `hash`, or `modulo` (3 + value mod size, as DLRM's --max-ind-range has it), for all columns
            or for each.
        hashSizes: buckets of a hashed column, likewise.
        minCounts: how often a value must stand to enter the vocabulary, likewise.
        maxBroadcast: entries that every worker holds, 15 bytes each; of a larger vocabulary the rarest go by a join.
        rowKeyCol: a column that tells rows apart; needed for the join only.
        salts: parts into which the join spreads the rows of one value.
        fitOn: `rows`, or `vocabulary`: rows of column, value, id (and count, for the join) that are kept elsewhere.
    """

    minCounts = Param(  # noqa: N815
        Params._dummy(), "minCounts", "how often a value must stand, for all or for each", TypeConverters.toListInt
    )
    fitOn = Param(  # noqa: N815
        Params._dummy(), "fitOn", "rows or vocabulary", TypeConverters.toString
    )
    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(  # noqa: PLR0913 - one by parameter, as all of spark.ml
        self,
        *,
        inputCols: Sequence[str] | None = None,
        outputCols: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        hashSizes: Sequence[int] | None = None,
        minCounts: Sequence[int] | None = None,
        maxBroadcast: int | None = None,
        rowKeyCol: str | None = None,
        salts: int | None = None,
        fitOn: str | None = None,
    ) -> None:
        super().__init__()
        self._java_obj = self._of_the_jar()
        self._setDefault(minCounts=[1], fitOn="rows")
        self._set(**self._input_kwargs)

    def _create_model(self, java_model: Any) -> CategoryEncoderModel:
        return CategoryEncoderModel(java_model)
