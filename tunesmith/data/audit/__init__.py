"""What is wrong with a file of rows: one small module for each family of checks, none of which needs a model."""
