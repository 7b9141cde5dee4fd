"""Write a power-law graph with planted communities: `spark-submit jobs/generate_graph.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("generate-graph")
