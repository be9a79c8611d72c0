"""Detect which column plays which role."""
