"""Negatives of a knowledge graph's triples as rows: `spark-submit jobs/sample_negatives.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("sample-negatives")
