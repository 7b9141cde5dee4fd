"""What our stages of spark.ml that live in the JVM (`io.headrace.ml`) share in Python: reading them back.

A pipeline, or a tuned model, that is read back looks for Python's class of a stage by the JVM's name: as `X` of a
module `io.headrace.ml`. There it finds those whose modules were imported before.

Import the module within functions: its classes are pyspark's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pyspark.ml.util import JavaMLReader

from headrace import __version__, resources
from headrace.errors import UserError

_PACKAGE = "io.headrace.ml"
_BY_NAME = sys.modules.setdefault(_PACKAGE, ModuleType(_PACKAGE))


class _Reader(JavaMLReader[Any]):
    """Finds the JVM's class, which is not named after ours, and gives ours its parameters."""

    def __init__(self, clazz: type[Any], made: Callable[[Any], Any]) -> None:
        super().__init__(clazz)
        self._made = made

    @classmethod
    def _java_loader_class(cls, clazz: type[Any]) -> str:
        return f"{_PACKAGE}.{clazz.__name__}"

    def load(self, path: str) -> Any:
        return self._made(self._jread.load(path))


class _Named:
    """A class that pyspark finds by the name of the JVM's."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        setattr(_BY_NAME, cls.__name__, cls)


class JvmModel(_Named):
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


class JvmEstimator(_Named):
    """Beside JavaEstimator, before JavaMLReadable: an estimator made by our jar, and read back."""

    def _of_the_jar(self) -> Any:
        """The JVM's object of this one's name and uid.

        Raises:
            UserError: Spark runs without our jar, or with one from before the class was written.
        """
        stage: Any = self
        name = f"{_PACKAGE}.{type(self).__name__}"
        try:
            return stage._new_java_obj(name, stage.uid)
        except TypeError as error:
            if "JavaPackage" not in str(error):  # what py4j takes any name for that is no class
                raise
            jar = resources.jar(__version__)
            raise UserError(
                f"Spark runs without the class {name}: no jar of ours is on its class path, or an old one",
                f"make setup, and under spark-submit with settings of your own --jars {jar}",
            ) from None

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
