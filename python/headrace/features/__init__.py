"""Features: bronze rows to the 13 floats and 26 ids that models take.

`transform` says what is done to a row, `row_transform` does it in numpy, `ctr` carries it over a Spark DataFrame,
`vocabulary` learns and grows the ids, `split` names the days, `hashing` holds the stable hash functions.
"""
