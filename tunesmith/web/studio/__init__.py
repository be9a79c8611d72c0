"""Studio: one page over every command, in the folder in which it was started."""
