"""One entry per command; each runs its steps in order."""
