"""Whether to tune at all, and what it takes: the arms' questions and the verdict, memory, time, how many more rows."""
