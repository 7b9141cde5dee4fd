"""The catalog: what each table is (spec), how it is read and written (delta), what a version holds (log, checks)."""
