"""The composition root."""

from mirror.app.errors import StartError
from mirror.app.serve import run, serving

__all__ = ["StartError", "run", "serving"]
