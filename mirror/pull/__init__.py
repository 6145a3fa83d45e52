"""Pulls through the cache.  Only this package decides the :class:`~mirror.pull.outcome.Outcome`."""
