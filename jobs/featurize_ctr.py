"""bronze/criteo into vocabularies and silver/ctr: `spark-submit jobs/featurize_ctr.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("featurize-ctr")
