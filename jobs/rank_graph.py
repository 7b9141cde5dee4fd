"""PageRank and connected components of a graph: `spark-submit jobs/rank_graph.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("rank-graph")
