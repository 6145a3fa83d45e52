"""Composition root: builds the parts of the mirror and starts and stops them."""

from mirror.server.errors import StartError
from mirror.server.serve import run, serving

__all__ = ["StartError", "run", "serving"]
