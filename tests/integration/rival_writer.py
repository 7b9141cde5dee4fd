"""A second process that appends to a Delta table; started by test_logstore.py, with the thin jar beside Delta's own.

Usage: rival_writer.py TABLE COMMITS JARS. Says `ready` on a line of its own, waits for a line on standard input,
writes, and ends with one JSON line.
"""

from __future__ import annotations

import json
import sys

from headrace.session import build_session


def main(table: str, commits: int, jars: str) -> None:
    conf = {"spark.jars": jars, "spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "2"}
    spark = build_session("rival", master="local[1]", conf=conf)
    spark.range(1).count()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(commits):
        rows = spark.range(number * 10, number * 10 + 10, 1, 1).selectExpr("id", "'rival' AS writer")
        rows.write.format("delta").mode("append").save(table)
    rows_seen = spark.read.format("delta").load(table).where("writer = 'rival'").count()
    running = spark.sparkContext.getConf()
    said = {
        "rows": rows_seen,
        "log_store": running.get("spark.delta.logStore.file.impl"),
        "jars": running.get("spark.jars"),
    }
    print(json.dumps(said), flush=True)
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
