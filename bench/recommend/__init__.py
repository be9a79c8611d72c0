"""Five real tasks on which the recommendation of `tunesmith plan` is held against every technique."""
