"""Benchmarks on GPUs: Tunesmith and others on the same token rows. Not run on a GPU yet; bench/gpu/README.md."""
