"""A running mirror, or a cache directory, as the commands reach it."""
