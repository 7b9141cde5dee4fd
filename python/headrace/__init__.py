"""Headrace carries data from the lakehouse into distributed training."""

__version__ = "0.1.0"
