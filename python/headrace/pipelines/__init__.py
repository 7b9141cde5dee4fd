"""Composition: what jobs, notebooks and the console command call."""
