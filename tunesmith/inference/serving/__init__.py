"""Serve several models to many clients at once."""
