"""Parallelism: where the forward pass itself changes, for a model is spread over ranks."""
