"""Other trainers on the jobs of bench.gpu. Nothing here imports tunesmith; each runs in an environment of its own."""
