"""The pages on which people label rows and judge answers."""
