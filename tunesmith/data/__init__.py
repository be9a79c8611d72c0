"""Data: a file becomes rows, rows become examples, examples are split. Nothing in here loads torch."""
