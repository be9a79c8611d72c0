"""A run's facts as JSON, HTML, a model card and lines in the terminal."""
