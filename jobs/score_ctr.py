"""A trained model over bronze or raw rows into gold/ctr_predictions: `spark-submit jobs/score_ctr.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("score-ctr")
