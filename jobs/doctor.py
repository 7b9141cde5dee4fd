"""Is this machine ready, and what to type if not: `spark-submit jobs/doctor.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("doctor")
