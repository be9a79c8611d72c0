"""Attention over packed rows, shared prefixes and soft prompts."""
