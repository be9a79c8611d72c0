"""Timings behind bench/RESULTS.md."""
