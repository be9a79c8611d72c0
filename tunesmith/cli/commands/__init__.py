"""The commands: one module each, with its options and the output of its result."""
