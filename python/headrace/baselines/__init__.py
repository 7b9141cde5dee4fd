"""Classical models on the lake's tables: what a deep model is to be compared with."""
