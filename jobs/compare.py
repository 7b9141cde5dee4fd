"""Runs beside each other: quality against seconds, memory and bytes: `spark-submit jobs/compare.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("compare")
