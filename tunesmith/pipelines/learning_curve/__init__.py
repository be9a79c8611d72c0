"""`tunesmith learning-curve`: the expected gain from more rows."""
