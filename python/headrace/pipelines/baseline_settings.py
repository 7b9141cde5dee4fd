"""Settings that the verbs of baselines share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.baselines import BASELINES, options_of
from headrace.baselines.tuning import METHODS, Search, check_grid
from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.options import described, known

__all__ = ["ModelOptions", "TuningConfig"]


def _by_defaults() -> str:
    """Options with their defaults, once for baselines that have the same."""
    named: dict[str, list[str]] = {}
    for name, spec in BASELINES.items():
        named.setdefault(described(spec.defaults), []).append(name)
    return "; ".join(f"{', '.join(names)}: {told}" for told, names in named.items())


@dataclass(kw_only=True)
class ModelOptions:
    """Options of the model; the help is made of BASELINES, below."""

    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)


ModelOptions.__doc__ = f"""Options of the model.

    Args:
        options: each a setting by its own name, as in --model.reg_param 0.01. With their defaults:
            {_by_defaults()}.
    """


@dataclass(kw_only=True)
class TuningConfig:
    """How --tune goes about it.

    Args:
        folds: of cross_validation.
        share: of the training rows that judge in train_validation.
        parallelism: points fitted at the same time.
        grid: values by option of the model, as in --tuning.grid.reg_param [0.001,0.01].
    """

    folds: int = 3
    share: float = 0.2
    parallelism: int = 1
    grid: dict[str, Any] = field(default_factory=dict, metadata=FREE)


def check_model(name: str, model: ModelOptions, tune: str, tuning: TuningConfig) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: an unknown option, a value of another type, a grid or method that cannot be.
    """
    known("tune", tune, METHODS)
    options_of(name, model.options)
    if tune == "none":
        if tuning.grid:
            raise UserError("--tuning.grid without --tune", "--tune cross_validation, or train_validation")
        return
    check_grid(name, tuning.grid)
    if both := sorted(set(tuning.grid) & set(model.options)):
        raise UserError(f"--model.{both[0]} and --tuning.grid.{both[0]}", "leave one of them out")
    if tuning.folds < 2 or not 0 < tuning.share < 1 or tuning.parallelism < 1:
        raise UserError("--tuning.folds is at least 2, --tuning.share between 0 and 1, --tuning.parallelism at least 1",
                        "leave them out")  # fmt: skip


def search_of(tune: str, tuning: TuningConfig, seed: int, fold_column: str = "") -> Search:
    """How points are judged."""
    return Search(tune, tuning.folds, tuning.share, tuning.parallelism, seed, fold_column)
