"""Stage 2: one loop for every objective and technique."""
