"""What our stages of spark.ml that live in the JVM (`io.headrace.ml`) share in Python: reading them back.

Import the module within functions: its classes are pyspark's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyspark.ml.util import JavaMLReader


class _Reader(JavaMLReader[Any]):
    """Finds the JVM's class, which is not named after ours, and gives ours its parameters."""

    def __init__(self, clazz: type[Any], made: Callable[[Any], Any]) -> None:
        super().__init__(clazz)
        self._made = made

    @classmethod
    def _java_loader_class(cls, clazz: type[Any]) -> str:
        return f"io.headrace.ml.{clazz.__name__}"

    def load(self, path: str) -> Any:
        return self._made(self._jread.load(path))


class JvmModel:
    """Beside JavaModel, before JavaMLReadable: a model that is read back."""

    @classmethod
    def read(cls) -> JavaMLReader[Any]:
        """Of `load(path)`."""
        return _Reader(cls, cls._of)

    @classmethod
    def _of(cls, java_model: Any) -> Any:
        model: Any = cls(java_model)  # type: ignore[call-arg]
        model._transfer_params_from_java()
        return model


class JvmEstimator:
    """Beside JavaEstimator, before JavaMLReadable: an estimator that is read back."""

    @classmethod
    def read(cls) -> JavaMLReader[Any]:
        """Of `load(path)`."""
        return _Reader(cls, cls._of)

    @classmethod
    def _of(cls, java_estimator: Any) -> Any:
        estimator: Any = cls()
        estimator._java_obj = java_estimator
        estimator._resetUid(java_estimator.uid())
        estimator._transfer_params_from_java()
        return estimator
