"""Pages in a browser: one guard before every route, no network, and nothing from a row ever read as markup."""
