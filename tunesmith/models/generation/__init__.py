"""Sample from a network."""
