"""Every technique on every objective and family of models, measured against controls: docs/reference/grid.md."""
