"""Networks: read, measured, run on batches of tokens, and written."""
