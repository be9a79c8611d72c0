"""Load networks and tokenizers: Hub, folders, GGUF files, bundled models, finished runs."""
