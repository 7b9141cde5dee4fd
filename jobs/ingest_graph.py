"""Edge lists, triples, features and labels of a graph into bronze: `spark-submit jobs/ingest_graph.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("ingest-graph")
