"""A tuned model in the shadow of a paid one: the paid server, the stored comparisons, and the decision."""
