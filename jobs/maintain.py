"""Table care - compact, vacuum, statistics: `spark-submit jobs/maintain.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("maintain")
