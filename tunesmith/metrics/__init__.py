"""Scores, significance tests, intervals and baselines; nothing here imports torch."""
