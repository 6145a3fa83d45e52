"""The composition root."""

from mirror.app.errors import StartError
from mirror.app.serve import run, serving
from mirror.app.workers import supervise

__all__ = ["StartError", "run", "serving", "supervise"]
