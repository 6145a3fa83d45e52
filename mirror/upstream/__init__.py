"""One registry over HTTP, spoken to as a good client.  Knows no cache and no disk."""
