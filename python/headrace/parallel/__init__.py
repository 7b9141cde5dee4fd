"""Parallelism: where the forward pass itself changes, for a model is spread over ranks."""

from headrace.parallel.dense import PARALLELISMS, ParallelismSpec, create
from headrace.parallel.pipeline import Pipeline
from headrace.parallel.pipeline_schedule import SCHEDULES, schedule
from headrace.parallel.tensor_model import TensorParallel

__all__ = ["PARALLELISMS", "SCHEDULES", "ParallelismSpec", "Pipeline", "TensorParallel", "create", "schedule"]
