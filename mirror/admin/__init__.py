"""How commands reach a running mirror, or a cache directory."""
