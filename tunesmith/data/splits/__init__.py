"""Load and split rows into train, validation and test without leakage."""
