"""Questions before a run: what it takes, which technique, how many more rows."""
