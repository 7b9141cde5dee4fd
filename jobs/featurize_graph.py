"""A graph in bronze into dense ids, CSR shards and aligned rows: `spark-submit jobs/featurize_graph.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("featurize-graph")
