"""Answers a second and waiting time of our server beside others."""
