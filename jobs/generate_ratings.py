"""Files of ratings from a planted model: `spark-submit jobs/generate_ratings.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("generate-ratings")
