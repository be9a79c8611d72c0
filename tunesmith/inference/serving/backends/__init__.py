"""Engines other than torch that answer requests."""
