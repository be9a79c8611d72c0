"""Stage 1: a file becomes rows, rows become examples, examples are split; nothing in here loads torch."""
