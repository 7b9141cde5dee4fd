"""bronze/ratings into ids, splits and silver/ratings: `spark-submit jobs/featurize_ratings.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("featurize-ratings")
