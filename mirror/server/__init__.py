"""The composition root."""

from mirror.server.errors import StartError
from mirror.server.serve import run, serving

__all__ = ["StartError", "run", "serving"]
