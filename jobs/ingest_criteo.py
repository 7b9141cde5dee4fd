"""Criteo logs into bronze/criteo, every line accounted for: `spark-submit jobs/ingest_criteo.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("ingest-criteo")
