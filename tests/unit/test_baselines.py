"""The dictionary of baselines, its options, and what is counted beside a fit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pyspark.errors import IllegalArgumentException

from headrace.baselines import BASELINES, having, options_of
from headrace.baselines.saga import Round, TrainingSummary
from headrace.baselines.spec import CLASSIFIER, LOGISTIC, RECOMMENDER, SEEDED, BaselineSpec, option_name, param_name
from headrace.baselines.tuning import check_grid
from headrace.errors import UserError
from headrace.pipelines import baseline_als, baseline_classifier, baseline_logistic
from headrace.pipelines.baseline_data import InputConfig
from headrace.pipelines.baseline_fit import _in_the_users_words, _tell_of_rounds
from headrace.pipelines.baseline_settings import ModelOptions, TuningConfig
from headrace.pipelines.peak_memory import PeakMemory
from headrace.pipelines.spark_events import event_log, written
from headrace.report import Report


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_explains_itself_and_its_options_have_mllibs_names(name):
    spec = BASELINES[name]
    assert spec.paper and spec.rule and spec.use and spec.defaults
    for option in spec.defaults:
        assert option_name(param_name(option)) == option
    assert options_of(name, {}) == dict(spec.defaults)


def test_names_are_translated_both_ways():
    assert param_name("max_block_size_in_mb") == "maxBlockSizeInMB"
    assert option_name("elasticNetParam") == "elastic_net_param"


def test_traits_must_be_known_and_say_what_it_is():
    plain = {"factory": dict, "paper": "p", "rule": "r", "use": "u"}
    with pytest.raises(ValueError, match="one of the first two"):
        BaselineSpec(**plain, traits=frozenset({SEEDED}))
    with pytest.raises(ValueError, match="one of the first two"):
        BaselineSpec(**plain, traits=frozenset({CLASSIFIER, "fast"}))
    assert set(having(LOGISTIC)) <= set(having(CLASSIFIER)) == set(BASELINES) - set(having(RECOMMENDER))


def test_options_and_grids_are_checked_by_name_and_type():
    with pytest.raises(UserError, match=r"no option 'reg_parm'\n.*did you mean reg_param"):
        options_of("lbfgs", {"reg_parm": 1})
    with pytest.raises(UserError, match="max_iter must be of type int"):
        options_of("gbt", {"max_iter": "many"})
    assert check_grid("lbfgs", {"max_iter": [3.0, 5]}) == {"max_iter": [3, 5]}
    for grid, said in (
        ({}, "without a grid"),
        ({"rank": [3]}, "no such option"),
        ({"reg_param": 0.1}, "no list"),
        ({"reg_param": []}, "no list"),
        ({"reg_param": ["a"]}, "must be of type float"),
    ):
        with pytest.raises(UserError, match=said):
            check_grid("lbfgs", grid)


def refused(config, check, **changes):
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError) as error:
        check(config)
    return str(error.value)


def test_settings_are_refused_before_spark_starts(tmp_path):
    def logistic(**changes):
        return refused(baseline_logistic.Config(lake=str(tmp_path)), baseline_logistic.early, **changes)

    assert "did you mean lbfgs?" in logistic(solver="lbfg")
    assert "headrace featurize-ctr" in logistic()
    assert "--tune 'grid' is unknown" in logistic(tune="grid")
    grid = TuningConfig(grid={"reg_param": [0.1]})
    assert "without --tune" in logistic(tuning=grid)
    both = {"tune": "cross_validation", "tuning": grid, "model": ModelOptions(options={"reg_param": 1.0})}
    assert "leave one of them out" in logistic(**both)
    few = TuningConfig(folds=1, grid={"reg_param": [0.1]})
    assert "--tuning.folds is at least 2" in logistic(tune="cross_validation", tuning=few)
    assert "name one of them" in logistic(input=InputConfig(libsvm="a", delta="b"))
    assert "name the file to train on" in logistic(input=InputConfig(libsvm_test="a"))
    assert "is no share" in logistic(input=InputConfig(holdout=1.0))
    assert "weights are taken from Delta tables" in logistic(input=InputConfig(weight="w"))
    assert "no Delta table there" in logistic(input=InputConfig(delta=str(tmp_path)))
    other = baseline_classifier.Config(lake=str(tmp_path))
    assert "is unknown" in refused(other, baseline_classifier.early, name="lbfgs")


def test_recommenders_settings_are_refused_before_spark_starts(tmp_path):
    def als(**changes):
        return refused(baseline_als.Config(lake=str(tmp_path)), baseline_als.early, **changes)

    assert "headrace featurize-ratings" in als()
    assert "--k 0 is out of range" in als(k=0)
    assert "is unknown" in als(cold_start="nan")
    grid = {"tune": "cross_validation", "tuning": TuningConfig(grid={"rank": [5]})}
    assert "says nothing of implicit" in als(model=ModelOptions(options={"implicit_prefs": True}), **grid)


@pytest.mark.parametrize(
    ("ended", "converged", "said"),
    [("gap", True, None), ("epochs", False, "raise --model.max_iter"), ("rounding", False, "--model.standardization")],
)
def test_a_fit_that_did_not_come_to_its_tolerance_is_a_warning_with_what_to_do(ended, converged, said):
    first = Round(0, 1.0, 10, 0.7, 0.2, "start", 0, 0, 0.1)
    summary = TrainingSummary("proof", ended, converged, 0.7, 0.5, 0.2 / 0.7, 1.0, 10, (), (first,))
    run = SimpleNamespace(report=Report("baseline", out=io.StringIO()), event=lambda event: None)
    _tell_of_rounds(run, summary)
    assert [said in warning for warning in run.report.warnings] == ([] if said is None else [True])
    assert run.report.results["ended"] == ended


def test_what_the_jvm_says_of_rows_is_an_error_of_the_users():
    with (
        pytest.raises(UserError, match=r"^column label has .* no row of class 1: .*holes\n.*mend the rows"),
        _in_the_users_words(),
    ):
        raise IllegalArgumentException(
            "requirement failed: column label has classes up to 2 but no row of class 1: number them without holes"
        )
    with pytest.raises(IllegalArgumentException), _in_the_users_words():
        raise IllegalArgumentException("requirement failed: something else")


def test_bytes_shuffled_are_those_of_stages_that_ended():
    def line(event, *values):
        found = [{"Name": "internal.metrics.shuffle.write.bytesWritten", "Value": value} for value in values]
        stage = {"Accumulables": [*found, {"Name": "internal.metrics.shuffle.read.recordsRead", "Value": 7}]}
        return json.dumps({"Event": event, "Stage Info": stage}).encode() + b"\n"

    assert written(line("SparkListenerStageCompleted", 10, "5")) == 15
    assert written(line("SparkListenerStageCompleted")) == 0
    assert written(line("SparkListenerStageSubmitted", 10)) == 0
    assert written(line("SparkListenerStageCompleted", 10)[:-1]) == 0  # a line that is still being written


def test_an_event_log_is_asked_for_where_this_process_starts_spark(monkeypatch):
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    with event_log(True) as conf:
        folder = conf["spark.eventLog.dir"].removeprefix("file://")
        assert conf["spark.eventLog.enabled"] == "true" and subprocess.run(["ls", folder], check=True)
    assert subprocess.run(["ls", folder], capture_output=True, check=False).returncode
    with event_log(False) as conf:
        assert conf == {}
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    with event_log(True) as conf:
        assert conf == {}


def test_peak_memory_sees_what_children_held():
    with PeakMemory() as before:
        pass
    with PeakMemory() as watched:
        script = "import time; held = bytearray(b'1') * 200_000_000; time.sleep(1.5)"
        subprocess.run([sys.executable, "-c", script], check=True)
        mine = np.ones(50_000_000 // 8)
    assert watched.megabytes > before.megabytes + 190 and mine.sum()
