"""Votes of raters: stored as events, turned into rows, and checked for agreement and rater quality."""
