"""A registry, a mirror of it, and an image to pull."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fakes.content import image
from tests.peers.distribution import Distribution
from tests.peers.image import push
from tests.peers.mirror import MirrorProcess
from tools.conformance.suite import Content

#: Content pushed a moment ago has to be visible, after a miss as well.
_AT_ONCE: Final = '[tags]\nmax_age = "1ms"\nnegative_max_age = "1ms"\n'


@dataclass(frozen=True)
class Stage:
    """A running registry and mirror."""

    registry: Distribution
    mirror: MirrorProcess

    def filled(self) -> Content:
        """Put an image into the registry."""
        app = image(bytes(100_000), b"layer")
        push(self.registry.url, "conformance/app", app, "1")
        return Content("conformance/app", "1", app.digest, tuple(app.digests))


@contextmanager
def staged(directory: Path) -> Iterator[Stage]:
    """Run distribution and a mirror of it."""
    registry = Distribution(directory / "registry")
    mirror = MirrorProcess(directory / "mirror", {"docker.io": registry.url}, _AT_ONCE)
    registry.start()
    try:
        mirror.start()
        yield Stage(registry, mirror)
        mirror.terminate()
    finally:
        registry.stop()
