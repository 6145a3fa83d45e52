"""What images are called here: the habits of the configured registries."""

from mirror.config.model import Config
from mirror.oci.image_glob import Naming


def naming(config: Config) -> Naming:
    """How a name of an image is read that leaves something out."""
    upstreams = config.enabled()
    return Naming(
        config.default_upstream(),
        {alias.lower(): name for name, each in upstreams.items() for alias in each.aliases},
        frozenset(name for name, upstream in upstreams.items() if upstream.library),
    )
