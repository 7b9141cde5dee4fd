"""Classical models on Spark: what a deep model is held against, on the same rows and by the same metrics."""

from __future__ import annotations

from typing import Any

from headrace.baselines import linear, mllib
from headrace.baselines.spec import CLASSIFIER, LOGISTIC, RECOMMENDER, SEEDED, BaselineSpec, Columns, param_name
from headrace.options import choose, known

BASELINES: dict[str, BaselineSpec] = {
    "lbfgs": mllib.LBFGS,
    "sag": linear.SAG,
    "saga": linear.SAGA,
    "svrg": linear.SVRG,
    "sarah": linear.SARAH,
    "scsg": linear.SCSG,
    "linear_svc": mllib.LINEAR_SVC,
    "fm": mllib.FM,
    "gbt": mllib.GBT,
    "als": mllib.ALS,
}


def having(trait: str) -> tuple[str, ...]:
    """Names of the baselines with a trait."""
    return tuple(name for name, spec in BASELINES.items() if trait in spec.traits)


def options_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a baseline, with `given` over its defaults; needs no Spark.

    Raises:
        UserError: an unknown name or option, or a value of another type.
    """
    known("name", name, BASELINES)
    return choose(name, BASELINES[name].defaults, given)


def create(name: str, columns: Columns | None = None, seed: int = 0, **options: Any) -> Any:
    """The spark.ml estimator of that name; Spark must run.

    Args:
        name: a key of BASELINES.
        columns: what a classifier reads; a recommender reads user, item, rating.
        seed: of baselines that draw random numbers.
        options: of the baseline, see its defaults.

    Raises:
        UserError: an unknown name or option, or a value of another type.
    """
    chosen = options_of(name, options)
    spec, read = BASELINES[name], columns or Columns()
    params = {param_name(option): value for option, value in chosen.items()}
    if SEEDED in spec.traits:
        params["seed"] = seed
    if CLASSIFIER in spec.traits:
        params |= {"featuresCol": read.features, "labelCol": read.label}
        params |= {"weightCol": read.weight} if read.weight else {}
    return spec.factory(**params)


__all__ = [
    "BASELINES",
    "CLASSIFIER",
    "LOGISTIC",
    "RECOMMENDER",
    "BaselineSpec",
    "Columns",
    "create",
    "having",
    "options_of",
]
