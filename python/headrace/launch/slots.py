"""How many ranks a Spark session can run at the same time."""

from __future__ import annotations

import re
from typing import Any

from headrace.errors import UserError


def is_local(spark: Any) -> bool:
    """Whether all of Spark runs on this machine (`local[...]`, `local-cluster[...]`)."""
    return str(spark.sparkContext.master).startswith("local")


def slots(spark: Any) -> int | None:
    """Tasks that run at the same time; None where the cluster decides (dynamic allocation, unknown cores)."""
    conf = spark.sparkContext.getConf()
    per_task = int(conf.get("spark.task.cpus", "1"))
    cores = _cores(spark.sparkContext, conf)
    return None if cores is None else cores // per_task


def _cores(context: Any, conf: Any) -> int | None:
    master = str(context.master)
    if cluster := re.match(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,", master):
        return int(cluster[1]) * int(cluster[2])
    if master == "local":
        return 1
    if threads := re.match(r"local\[\s*(\d+|\*)", master):
        return int(threads[1]) if threads[1] != "*" else int(context.defaultParallelism)
    instances, cores = conf.get("spark.executor.instances"), conf.get("spark.executor.cores")
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true" or not (instances and cores):
        return None
    return int(instances) * int(cores)


def check_slots(spark: Any, n: int) -> None:
    """Refuse a launch that would wait for ever.

    Raises:
        UserError: no session, or fewer slots than ranks.
    """
    if spark is None:
        raise UserError("this launcher needs a Spark session", "pass spark=build_session(...), or use --launcher local")
    have = slots(spark)
    if have is None or have >= n:
        return
    master = spark.sparkContext.master
    remedy = f"--master local[{n}]" if re.match(r"local(\[|$)", str(master)) else f"executors with {n} cores in all"
    raise UserError(
        f"{n} ranks need {n} task slots, the session ({master}) has {have}", f"use {remedy}, or fewer ranks"
    )


def python_executable(spark: Any) -> str:
    """The Python that ranks run: what Spark's own Python workers run."""
    import os
    import sys

    conf = spark.sparkContext.getConf()
    return os.environ.get("PYSPARK_PYTHON") or conf.get("spark.pyspark.python") or sys.executable
