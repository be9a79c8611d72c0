"""Chunk documents, index them, and put passages into prompts."""
