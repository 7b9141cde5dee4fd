"""What a baseline declares about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CLASSIFIER = "classifier"  # label and vector in, rawPrediction out
RECOMMENDER = "recommender"  # user, item and rating in, factors out
LOGISTIC = "logistic"  # a solver of logistic regression: what `baseline-logistic --solver` offers
MULTICLASS = "multiclass"  # more than two classes
WEIGHTED = "weighted"  # rows may have weights
SEEDED = "seeded"  # draws random numbers: takes the run's seed
MARGIN = "margin"  # its score is a distance and no logit: probabilities are fitted to it (Platt)
NARROW = "narrow"  # memory and time go by features x bins: categories are hashed to few buckets
OBJECTIVE = "objective"  # the model's summary has the objective by iteration
CERTIFIED = "certified"  # it bounds the minimum, and has what each round cost: `saga.TrainingSummary`
TRAITS = (CLASSIFIER, RECOMMENDER, LOGISTIC, MULTICLASS, WEIGHTED, SEEDED, MARGIN, NARROW, OBJECTIVE, CERTIFIED)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that a classifier reads; `weight` is empty where rows have none."""

    features: str = "features"
    label: str = "label"
    weight: str = ""


@dataclass(frozen=True, kw_only=True)
class BaselineSpec:
    """One entry of BASELINES.

    Args:
        factory: `factory(**params)` makes the spark.ml estimator; parameters have MLlib's names.
        paper: the reference.
        rule: what is minimized, or built, in one line.
        use: when to choose it, in one sentence.
        traits: of TRAITS; tests and checks go by them, never by names.
        defaults: options and their values where none are given, in our spelling: `reg_param` is MLlib's regParam.
        raw_scale: a logit is so many times the second number of rawPrediction.
    """

    factory: Callable[..., Any]
    paper: str
    rule: str
    use: str
    traits: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    raw_scale: float = 1.0

    def __post_init__(self) -> None:
        unknown = sorted(self.traits - set(TRAITS))
        if unknown or len(self.traits & {CLASSIFIER, RECOMMENDER}) != 1:
            raise ValueError(f"traits must be of {TRAITS}, one of the first two among them; got {sorted(self.traits)}")


def param_name(option: str) -> str:
    """`max_iter` as MLlib has it: maxIter; the exceptions are maxMemoryInMB and maxBlockSizeInMB."""
    head, *rest = option.split("_")
    return head + "".join(part.upper() if part == "mb" else part.capitalize() for part in rest)


def option_name(param: str) -> str:
    """Undo `param_name`."""
    spaced = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in param.replace("MB", "Mb"))
    return spaced.lstrip("_")
