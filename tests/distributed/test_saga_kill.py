"""An executor of its own process killed in the middle of a fit: the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLED_FIT = """
import json, sys, threading, time
import psutil
from headrace.baselines.saga import SagaLogisticRegression
from headrace.session import build_session

golden = json.load(open(sys.argv[1]))
conf = {"spark.driver.memory": "1g", "spark.executor.memory": "512m", "spark.sql.shuffle.partitions": "4"}
conf |= {f"spark.{who}.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" for who in ("driver", "executor")}
spark = build_session("kill an executor", master="local-cluster[2,1,2048]", conf=conf)

from pyspark.ml.linalg import Vectors
cells = zip(golden["two"], golden["weight"], golden["features"])
rows = [(label, weight, Vectors.dense(x)) for label, weight, x in cells] * 50
frame = spark.createDataFrame(rows, ["label", "weight", "features"])
estimator = SagaLogisticRegression(
    solver=sys.argv[2], weightCol="weight", regParam=1e-3, elasticNetParam=0.5, tol=1e-7,
    localPasses=1.0, numPartitions=4,
)

def is_executor(process):
    try:
        return "CoarseGrainedExecutor" in " ".join(process.cmdline())
    except psutil.Error:  # one of the short-lived ones
        return False

def executors():
    return [process for process in psutil.Process().children(recursive=True) if is_executor(process)]

def fitted(name):
    spark.sparkContext.setJobGroup(name, name)
    model = estimator.fit(frame)
    found = [float(each).hex() for each in (*model.coefficients.toArray(), model.intercept)]
    return {"found": found, "rounds": model.summary.rounds[-1].number, "certificate": model.summary.certificate}

def jobs(name):  # begun so far, those that have ended too
    return len(spark.sparkContext.statusTracker().getJobIdsForGroup(name))

def kill_within(name, jobs_before, done, killed):
    while jobs(name) < jobs_before and not done.is_set():
        time.sleep(0.002)
    executors()[0].kill()
    killed.append(not done.is_set())

first = fitted("first")
done, killed = threading.Event(), []
killer = threading.Thread(target=kill_within, args=("second", jobs("first") // 2, done, killed), daemon=True)
killer.start()
second = fitted("second")
done.set()
killer.join(60)
print(json.dumps({"first": first, "second": second, "killed": killed}))
spark.stop()
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "solver", ["saga", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("sag", "svrg", "sarah", "scsg"))]
)
def test_an_executor_killed_in_the_middle_of_a_fit_changes_no_bit(solver: str, tmp_path: Path) -> None:
    script = tmp_path / "killed_fit.py"
    script.write_text(KILLED_FIT)
    golden = Path(__file__).parents[1] / "golden/linear_models.json"
    done = subprocess.run(
        [sys.executable, str(script), str(golden), solver], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == [True], done.stderr[-3000:]
    assert told["first"]["rounds"] > 3
    assert told["second"] == told["first"]
