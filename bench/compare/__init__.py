"""Five real cases for `tunesmith compare`, retrieval apart, and the store that was chosen."""
