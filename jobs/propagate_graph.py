"""Propagated features (SGC, SIGN) of a graph's nodes: `spark-submit jobs/propagate_graph.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("propagate-graph")
