"""The HTTP client of one registry.  Must not know the cache or the disk."""
