"""The mirror as an HTTP proxy: registries are answered from the cache, the rest is let through."""
