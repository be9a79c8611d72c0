"""People's votes: kept as they are cast, never changed afterwards, and measured against each other."""
