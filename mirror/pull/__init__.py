"""Hit, miss, coalesced, revalidated, stale, negative: the only place where these are decided."""
