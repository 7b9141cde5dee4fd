"""Files of ratings into bronze/ratings: `spark-submit jobs/ingest_ratings.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("ingest-ratings")
