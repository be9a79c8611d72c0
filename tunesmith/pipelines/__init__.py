"""One file per story, told from start to end."""
