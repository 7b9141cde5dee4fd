"""Sources into bronze tables: every line of every input file is accounted for."""
