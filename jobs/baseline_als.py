"""silver/ratings through ALS into recommendations: `spark-submit jobs/baseline_als.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("baseline-als")
