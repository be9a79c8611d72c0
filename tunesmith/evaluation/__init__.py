"""Base and tuned model on the same held-out rows. Scores and tests themselves are in `metrics`.

evaluators      one per kind of objective: predictions, comparison, baselines, diagnostics
predict         answers of a base model, by its best prompt or a probe, and of a tuned one
perplexity      likelihood of texts
diagnostics     baselines, controls, general ability, calibration and style
retention       general ability before and after tuning
contamination   test rows that the base run was trained on
results         the schemas of these results
"""
