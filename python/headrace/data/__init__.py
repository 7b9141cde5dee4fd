"""From a pinned table version to batches: the plan (pure), Petastorm (decoding), the stream."""
