"""WARC, WET and WAT files into the lake: `spark-submit jobs/ingest_commoncrawl.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("ingest-commoncrawl")
