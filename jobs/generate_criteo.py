"""Write files in the Criteo Terabyte format with a planted model: `spark-submit jobs/generate_criteo.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("generate-criteo")
