"""Data-quality checks for files of rows, one module per family of checks. None of them needs a model."""
