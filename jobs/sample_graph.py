"""Sampled neighbourhoods of a graph's nodes as rows: `spark-submit jobs/sample_graph.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("sample-graph")
