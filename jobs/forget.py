"""Files out of the lake again, or an open batch given up: `spark-submit jobs/forget.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("forget")
