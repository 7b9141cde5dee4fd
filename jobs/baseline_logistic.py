"""Logistic regression on Spark beside the deep models: `spark-submit jobs/baseline_logistic.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("baseline-logistic")
