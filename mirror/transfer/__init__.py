"""Warm, export and import, through a running mirror or on the cache directory itself."""
