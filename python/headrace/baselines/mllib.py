"""MLlib's own estimators as baselines: logistic regression by L-BFGS, linear SVM, factorization machine, boosted trees,
alternating least squares.

Nothing is changed in them; defaults that are not MLlib's are ours to make the first run a sensible one on clicks.
"""

from __future__ import annotations

from typing import Any

from headrace.baselines.spec import (
    CLASSIFIER,
    LOGISTIC,
    MARGIN,
    MULTICLASS,
    NARROW,
    OBJECTIVE,
    RECOMMENDER,
    SEEDED,
    WEIGHTED,
    BaselineSpec,
)

_LINEAR = {
    "reg_param": 1e-4,
    "max_iter": 100,
    "tol": 1e-6,
    "standardization": False,  # with it, rare categories would hardly be penalized at all
    "fit_intercept": True,
    "aggregation_depth": 2,
    "max_block_size_in_mb": 0.0,
}


def _logistic(**params: Any) -> Any:
    from pyspark.ml.classification import LogisticRegression

    return LogisticRegression(**params)


def _linear_svc(**params: Any) -> Any:
    from pyspark.ml.classification import LinearSVC

    return LinearSVC(**params)


def _fm(**params: Any) -> Any:
    from pyspark.ml.classification import FMClassifier

    return FMClassifier(**params)


def _gbt(**params: Any) -> Any:
    from pyspark.ml.classification import GBTClassifier

    return GBTClassifier(**params)


def _als(**params: Any) -> Any:
    from pyspark.ml.recommendation import ALS

    return ALS(userCol="user", itemCol="item", ratingCol="rating", **params)


LBFGS = BaselineSpec(
    factory=_logistic,
    paper="D. C. Liu, J. Nocedal, On the limited memory BFGS method, 1989; OWL-QN: G. Andrew, J. Gao, ICML 2007",
    rule="min mean log(1 + exp(-y w.x)) + reg_param ((1 - a) |w|^2 / 2 + a |w|_1), a = elastic_net_param",
    use="the first thing to try on sparse features; every iteration is a pass over all rows",
    traits=frozenset({CLASSIFIER, LOGISTIC, MULTICLASS, WEIGHTED, OBJECTIVE}),
    defaults=_LINEAR | {"elastic_net_param": 0.0, "family": "auto"},
)
LINEAR_SVC = BaselineSpec(
    factory=_linear_svc,
    paper="C. Cortes, V. Vapnik, Support-vector networks, 1995; MLlib minimizes the hinge loss by OWL-QN",
    rule="min mean max(0, 1 - y w.x) + reg_param |w|^2 / 2",
    use="where only the order of the scores counts; probabilities are fitted to it afterwards",
    traits=frozenset({CLASSIFIER, WEIGHTED, MARGIN, OBJECTIVE}),
    defaults=_LINEAR,
)
FM = BaselineSpec(
    factory=_fm,
    paper="S. Rendle, Factorization machines, ICDM 2010",
    rule="logit = w0 + w.x + sum over i < j of (v_i . v_j) x_i x_j; min mean logloss + reg_param |w, v|^2 by AdamW",
    use="pairs of categories matter, and there are too many of them for weights of their own",
    traits=frozenset({CLASSIFIER, SEEDED, OBJECTIVE}),
    defaults={
        "factor_size": 8,
        "fit_intercept": True,
        "fit_linear": True,
        "reg_param": 1e-5,
        "mini_batch_fraction": 1.0,
        "init_std": 0.01,
        "max_iter": 100,
        "step_size": 0.03,  # every weight moves by about so much at each of the first iterations, 26 of them in a row
        "tol": 1e-6,
        "solver": "adamW",
    },
)
GBT = BaselineSpec(
    factory=_gbt,
    paper="J. H. Friedman, Greedy function approximation: a gradient boosting machine, 2001",
    rule="F = sum of step_size tree_m(x), each tree fitted to the gradient of log(1 + exp(-2 y F))",
    use="few features, dense ones above all; what a table without large categories should be held against",
    traits=frozenset({CLASSIFIER, WEIGHTED, SEEDED, NARROW}),
    defaults={
        "max_iter": 20,
        "max_depth": 5,
        "max_bins": 32,
        "step_size": 0.1,
        "subsampling_rate": 1.0,
        "feature_subset_strategy": "all",
        "min_instances_per_node": 1,
        "min_info_gain": 0.0,
        "max_memory_in_mb": 256,
    },
    raw_scale=2.0,
)
ALS = BaselineSpec(
    factory=_als,
    paper=(
        "Y. Zhou et al., Large-scale parallel collaborative filtering for the Netflix prize, 2008; "
        "implicit: Y. Hu et al., 2008"
    ),
    rule="min sum (r - u.v)^2 + reg_param (sum n_u |u|^2 + sum n_i |v|^2), users and items by turns",
    use="ratings or counts of users and items, nothing else known of either",
    traits=frozenset({RECOMMENDER, SEEDED}),
    defaults={
        "rank": 10,
        "max_iter": 20,
        "reg_param": 0.1,
        "implicit_prefs": False,
        "alpha": 1.0,
        "nonnegative": False,
        "num_user_blocks": 10,
        "num_item_blocks": 10,
        "block_size": 4096,
        "checkpoint_interval": 5,  # MLlib's 10 iterations between checkpoints can be deeper than a thread's stack
    },
)
