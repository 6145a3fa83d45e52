"""Proxy mode: requests to registries are answered from the cache, other hosts get a tunnel."""
