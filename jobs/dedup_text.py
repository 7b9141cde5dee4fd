"""Duplicates among silver/documents into silver/duplicates: `spark-submit jobs/dedup_text.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("dedup-text")
