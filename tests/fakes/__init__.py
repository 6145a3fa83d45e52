"""A real registry that can be told to misbehave."""

from tests.fakes.content import Image, image, random_bytes
from tests.fakes.faults import Fault
from tests.fakes.registry import FakeRegistry

__all__ = ["FakeRegistry", "Fault", "Image", "image", "random_bytes"]
