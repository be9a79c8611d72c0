"""Decisions before a run: comparison of arms and its verdict, cost estimates, recommendations, learning curves."""
