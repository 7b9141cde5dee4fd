"""Logistic regression on the rows, and by the metrics, of the deep click models, by a choice of solvers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.baselines import LOGISTIC, having
from headrace.options import known
from headrace.pipelines.baseline_classifier import ClassifierConfig, check, run_classifier

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.report import Report

MEASURED = True
SOLVERS = having(LOGISTIC)


@dataclass(kw_only=True)
class Config(ClassifierConfig):
    """Fit logistic regression; the help is made of BASELINES, below."""

    solver: str = "lbfgs"


Config.__doc__ = f"""Fit logistic regression.

    Args:
        solver: {" or ".join(SOLVERS)}.
    """


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting, no table.
    """
    known("solver", cfg.solver, SOLVERS)
    check(cfg, cfg.solver)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Fit, judge, keep.

    Raises:
        UserError: a setting or rows that the user can mend.
    """
    early(cfg)
    return run_classifier(spark, cfg, cfg.solver, "logistic", report)
