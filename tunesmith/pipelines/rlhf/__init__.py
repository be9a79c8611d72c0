"""`tunesmith rlhf`: sample, judge, learn, judge again."""
