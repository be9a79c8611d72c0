"""`tunesmith compare`: prompt, retrieval and tuned arms on the same held-out rows."""
