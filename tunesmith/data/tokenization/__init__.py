"""Messages and texts to token ids: chat templates, windows, masking."""
