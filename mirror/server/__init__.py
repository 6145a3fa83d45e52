"""Composition root: builds the parts of the mirror and starts and stops them."""

from mirror.server.serve import run, serving

__all__ = ["run", "serving"]
