"""Training: one loop for one rank and many, checkpoints, exact metrics, events, and their way to MLflow."""
