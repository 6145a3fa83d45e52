"""A pull-through cache for container images."""

__version__ = "0.2.0"
