"""MLlib's other classifiers beside the deep models: `spark-submit jobs/baseline_classifier.py --help`."""

from headrace.pipelines.cli import job

if __name__ == "__main__":
    job("baseline-classifier")
