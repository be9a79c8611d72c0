"""OpenAI's HTTP API over tuned models."""
