"""`tunesmith tune`: base scores, training, tuned scores, report."""
