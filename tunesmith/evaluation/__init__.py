"""Metrics, significance tests and baselines for the answers of a model.

metrics        per-row scores where the metric allows it, so that two models can be compared row by row
significance   base against tuned: difference, interval, p-value and a verdict in words
resampling     bootstrap and permutation over clusters of rows, used by significance
calibration    errors of the stated probabilities, temperature scaling, confidence thresholds
style          similarity to the references, style rules, habits such as loops
baselines      majority label, TF-IDF + logistic regression, linear probe
"""
