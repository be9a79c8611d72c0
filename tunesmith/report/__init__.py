"""Reports of a run: report.json, report.html, model card, terminal output and the comparison of two runs."""
