"""Write `$SPARK_HOME/conf` of the environment's pyspark, and let its commands find Spark without PATH.

Usage: python scripts/spark_settings.py SPARK_HOME. Run with the environment's own Python, by set-up.
"""

from __future__ import annotations

import sys
from pathlib import Path

from headrace import __version__, java, resources
from headrace.session import check_jar, start_options

ENVIRONMENT = """# Written by `make setup`. What is set in the environment wins.
export JAVA_HOME="${{JAVA_HOME:-{java_home}}}"
# Where the host's own name does not resolve Spark would not start.
if [ -z "$SPARK_LOCAL_IP" ] && ! getent hosts "$(uname -n)" >/dev/null 2>&1; then
  export SPARK_LOCAL_IP=127.0.0.1
fi
"""

# pyspark's own script asks whatever `python3` is on PATH, which need not know pyspark.
FIND_SPARK_HOME = """#!/usr/bin/env bash
# Written by `make setup`.
export SPARK_HOME="${{SPARK_HOME:-{spark_home}}}"
"""


def main(spark_home: Path) -> None:
    jar = resources.jar(__version__)
    check_jar(jar)
    conf = spark_home / "conf"
    conf.mkdir(exist_ok=True)
    python = sys.executable
    settings = start_options(jar) | {"spark.pyspark.python": python, "spark.pyspark.driver.python": python}
    lines = ["# Written by `make setup` from headrace.session: a change here lasts until the next set-up."]
    lines += [f"{key} {value}" for key, value in sorted(settings.items())]
    write(conf / "spark-defaults.conf", "\n".join(lines) + "\n")
    write(conf / "log4j2.properties", resources.path("conf/spark/log4j2.properties").read_text())
    write(conf / "spark-env.sh", ENVIRONMENT.format(java_home=java.find().home))
    write(Path(python).parent / "find-spark-home", FIND_SPARK_HOME.format(spark_home=spark_home))


def write(path: Path, text: str) -> None:
    """Replace a file in one step, and only if it differs: a Spark may be starting right now."""
    if path.exists() and path.read_text() == text:
        return
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.chmod(0o755 if path.suffix in ("", ".sh") else 0o644)
    fresh.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
