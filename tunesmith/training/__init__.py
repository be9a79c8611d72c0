"""Training: from recipe and rows to a trained policy, by one loop for every objective and technique."""
