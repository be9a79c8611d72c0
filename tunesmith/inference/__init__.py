"""A tuned model or its base, ready to answer: here, over HTTP, in other programs' files."""
