"""bronze/commoncrawl into documents, corpus and packed sequences: `spark-submit jobs/featurize_text.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("featurize-text")
