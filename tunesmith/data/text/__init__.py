"""Words, domain terms, shingles and overlap of texts."""
