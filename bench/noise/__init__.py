"""How often a verdict says "better" where nothing is better, and how often it finds what is."""
