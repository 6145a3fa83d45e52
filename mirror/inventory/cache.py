"""An open cache directory, as cache operations need it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

from mirror.config.cluster import ClusterConfig
from mirror.config.model import Config
from mirror.config.policy import kept_images, naming
from mirror.oci.image_glob import FullName, ImageGlob, Naming
from mirror.store.images.catalogue import Catalogue
from mirror.store.local.objects import Objects


@dataclass(frozen=True, slots=True)
class Cache:
    """The stored objects, the catalogue of images, the naming rules, and the kept images.

    ``kept`` are the globs of the configuration, ``chosen`` the names of the keep list, ``cluster``
    what the mirror shares with others.
    """

    objects: Objects
    catalogue: Catalogue
    naming: Naming
    kept: Sequence[ImageGlob]
    upstreams: Sequence[str]
    chosen: Collection[str]
    cluster: ClusterConfig

    @classmethod
    def of(
        cls, config: Config, objects: Objects, catalogue: Catalogue, chosen: Collection[str]
    ) -> Self:
        """Combine an open cache with the rules of a configuration."""
        names = tuple(config.enabled())
        rules = naming(config), kept_images(config), names, chosen
        return cls(objects, catalogue, *rules, config.cluster)

    def keeps(self, image: FullName) -> bool:
        """Return True if a ``[[keep]]`` rule matches an image, or the keep list names it."""
        return str(image) in self.chosen or any(glob.matches(image) for glob in self.kept)
