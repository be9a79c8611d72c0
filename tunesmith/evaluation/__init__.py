"""Scores of answers, how sure one may be of them, and the cheap ways a tuned model has to beat.

metrics        one number per row wherever a metric allows it, so that two models can be compared row by row
significance   base against tuned: difference, interval, p-value and a verdict in words
resampling     the draws over clusters of rows that significance is read off
calibration    is the confidence worth anything, and when should the model stay silent
style          does it sound like the references, does it keep the house rules, does it ramble
baselines      TF-IDF and a linear probe: what costs nothing and often suffices
"""
