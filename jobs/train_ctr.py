"""silver/ctr through Petastorm into ranks, a model into MLflow: `spark-submit jobs/train_ctr.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("train-ctr")
