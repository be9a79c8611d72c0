"""The tools of `tunesmith mcp`: what a coding agent may do, in which folders, and for how long."""
