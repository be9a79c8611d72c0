"""HTTP: annotation pages and the OpenAI-compatible server. Text from rows is never rendered as markup."""
