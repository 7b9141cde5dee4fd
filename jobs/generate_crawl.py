"""Write crawl files with planted duplicates and bad records: `spark-submit jobs/generate_crawl.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("generate-crawl")
