"""Documents, FAQ pages, tables, tool descriptions and model-written rows: more data to learn from. No torch in here."""
